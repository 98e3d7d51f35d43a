"""A PgBouncer in front of the server that the environment names, if one is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

CONFIGURATION = """\
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
auth_type = any
pool_mode = {mode}
default_pool_size = {connections}
max_client_conn = 500
unix_socket_dir =
{more}
"""


@contextmanager
def bouncer(
    connections: int, mode: str = "transaction", more: str = ""
) -> Iterator[dict[str, Any] | None]:
    """Yield the settings that lead through a PgBouncer; None where none is installed.

    It has so many connections to each database, and `more` lines in its configuration.
    """
    program = find_bouncer()
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bouncer-") as directory:
        Path(directory).chmod(0o755)
        file = Path(directory, "pgbouncer.ini")
        file.write_text(
            CONFIGURATION.format(
                host=os.environ["PGHOST"],
                port=os.environ.get("PGPORT", "5432"),
                user=os.environ["PGUSER"],
                listen=listen,
                connections=connections,
                mode=mode,
                more=more,
            )
        )
        process = subprocess.Popen(
            [program, "--quiet", file],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **_owner_of_server(),
        )
        try:
            _wait_until_ready(listen)
            yield {"HOST": "127.0.0.1", "PORT": str(listen)}
        finally:
            process.terminate()
            process.wait(30)


def find_bouncer() -> str | None:
    """Return the program, which Debian does not put on everybody's path."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


def _owner_of_server() -> dict[str, Any]:
    """Return whom to become, as `Popen` wants it: PgBouncer refuses root."""
    socket_directory = Path(os.environ["PGHOST"])
    if os.geteuid() != 0 or not socket_directory.is_dir():
        return {}
    owner = socket_directory.stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, dbname="postgres").close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
