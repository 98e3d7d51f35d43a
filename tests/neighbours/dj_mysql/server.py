"""A private MariaDB of Debian's binaries, for as long as a `with` block lasts."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

START_TIMEOUT = 60
USER = "root"
DATABASE = "django_pg_real_pool_tests"


@contextmanager
def private_server() -> Iterator[str]:
    """Start a server with an empty database; yield its socket, which is its HOST."""
    # Not in the caller's own temporary directory: a socket's path may have 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="my-"))
    account = _unprivileged_account()
    if account:
        os.chown(directory, account["user"], account["group"])
    try:
        options = [f"--datadir={directory / 'data'}"]
        _run(
            [
                *("mariadb-install-db", "--no-defaults", *options, "--skip-test-db"),
                "--auth-root-authentication-method=normal",
            ],
            directory,
            account,
        )
        server = _start(options, directory, account)
        try:
            _wait_until_ready(server, directory)
            yield str(directory / "socket")
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _unprivileged_account() -> dict[str, Any]:
    """Return whom to become, as `Popen` wants it: the server refuses root."""
    if os.geteuid() != 0:
        return {}
    for name in ("mysql", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise SystemExit("MariaDB refuses root, and there is no user `mysql` or `nobody`.")


def _run(command: list[str], directory: Path, account: dict[str, Any]) -> None:
    ran = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, **account
    )
    if ran.returncode:
        raise SystemExit(f"{command[0]} failed:\n{ran.stdout}{ran.stderr}")


def _start(
    options: list[str], directory: Path, account: dict[str, Any]
) -> subprocess.Popen[bytes]:
    program = shutil.which("mariadbd", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        raise SystemExit("No MariaDB server was found: apt-get install mariadb-server")
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            [
                *(program, "--no-defaults", *options, "--skip-networking"),
                f"--socket={directory / 'socket'}",
                f"--pid-file={directory / 'pid'}",
                "--innodb-flush-log-at-trx-commit=0",
            ],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the tests
            **account,
        )


def _wait_until_ready(server: subprocess.Popen[bytes], directory: Path) -> None:
    import MySQLdb

    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            connection = MySQLdb.connect(user=USER, unix_socket=str(directory / "socket"))
        except MySQLdb.OperationalError as error:
            if server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            log = (directory / "log").read_text(errors="replace")
            raise SystemExit(f"MariaDB did not start ({error}):\n{log}") from error
        connection.query(f"CREATE DATABASE {DATABASE}")
        connection.close()
        return
