"""A private PostgreSQL of its own binaries, for as long as a `with` block lasts.

The embedded server of the ordinary tests has neither contrib extensions nor ICU, which
Django's suite uses.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

USER = "django"
START_TIMEOUT = 60

#: Nothing here must survive a power cut, so nothing waits for the disk.
OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    # Some tests read rows in the order of the table's pages, which a vacuum changes.
    "autovacuum": "off",
}

HOW_TO_INSTALL = """\
No PostgreSQL server was found: neither /usr/lib/postgresql/*/bin/initdb, nor `initdb` on
the path. Install one with its contrib extensions, or name the directory of its binaries
with --postgres-bin:
    Debian, Ubuntu    apt-get install postgresql
    Fedora            dnf install postgresql-server postgresql-contrib
    macOS             brew install postgresql"""


def find_binaries() -> Path:
    """Return the directory of the newest PostgreSQL's programs."""
    found = [
        initdb.parent
        for initdb in Path("/usr/lib/postgresql").glob("*/bin/initdb")
        if (initdb.parent / "postgres").exists()
    ]
    if found:
        return max(found, key=lambda path: [int(n) for n in path.parent.name.split(".")])
    initdb_on_path = shutil.which("initdb")
    if initdb_on_path is None:
        raise SystemExit(HOW_TO_INSTALL)
    return Path(initdb_on_path).resolve().parent


def version_of(binaries: Path) -> str:
    output = subprocess.run(
        [binaries / "postgres", "--version"], check=True, capture_output=True, text=True
    )
    return output.stdout.strip()


@contextmanager
def private_server(binaries: Path) -> Iterator[str]:
    """Start a server; yield the directory of its socket, which is its HOST."""
    # Not in the caller's own temporary directory: a socket's path may have 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    account = _unprivileged_account()
    if account:
        os.chown(directory, account["user"], account["group"])
    try:
        _initialise(binaries, directory, account)
        server = _start(binaries, directory, account)
        try:
            _wait_until_ready(server, directory)
            yield str(directory)
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown: it cuts sessions off
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def create_databases(host: str, *names: str) -> None:
    with psycopg.connect(
        host=host, user=USER, dbname="postgres", autocommit=True
    ) as server:
        for name in names:
            server.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(_identifier(name)))


def end_sessions(host: str) -> None:
    """End what a killed client left behind: it may hold locks for long."""
    with psycopg.connect(
        host=host, user=USER, dbname="postgres", autocommit=True
    ) as server:
        server.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )


def _identifier(name: str) -> psycopg.sql.Identifier:
    return psycopg.sql.Identifier(name)


def _unprivileged_account() -> dict[str, Any]:
    """Return whom to become, as `Popen` wants it: initdb and the server refuse root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise SystemExit(
        "PostgreSQL refuses root, and there is no user `postgres` or `nobody`."
    )


def _initialise(binaries: Path, directory: Path, account: dict[str, Any]) -> None:
    result = subprocess.run(
        [
            binaries / "initdb",
            f"--pgdata={directory / 'data'}",
            f"--username={USER}",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        **account,
    )
    if result.returncode:
        raise SystemExit(f"initdb failed:\n{result.stdout}{result.stderr}")


def _start(
    binaries: Path, directory: Path, account: dict[str, Any]
) -> subprocess.Popen[bytes]:
    options = {**OPTIONS, "unix_socket_directories": str(directory)}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(
            [binaries / "postgres", "-D", directory / "data", *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the tests; the server is stopped after them.
            start_new_session=True,
            **account,
        )


def _wait_until_ready(server: subprocess.Popen[bytes], directory: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            psycopg.connect(host=str(directory), user=USER, dbname="postgres").close()
        except psycopg.OperationalError as error:
            if server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            log = (directory / "log").read_text(errors="replace")
            raise SystemExit(f"PostgreSQL did not start ({error}):\n{log}") from error
        return
