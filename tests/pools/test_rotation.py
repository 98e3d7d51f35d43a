"""The page on rotating credentials, on a server that refuses the old password."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from docs_scripts import load
from places import DOCS
from second_server import HOST, Server

PAGE = DOCS / "how-to" / "rotate-credentials.md"
ROLE = "shop"

#: Run beside the page's project, once for each alias.  Counts how often a password is read,
#: and rotates it twice, so that an old one is refused.
PROGRAM = """
import os, sys, threading
import django
from shop import credentials

django.setup()

import psycopg
from django.db import connections

alias = sys.argv[1]
wrapper = connections[alias]
if len(sys.argv) > 2:
    wrapper.settings_dict["PASSWORD"] = sys.argv[2]
    wrapper.settings_dict["OPTIONS"]["pool"]["timeout"] = 3
reads = []
read = credentials.PASSWORD_FILE.read_text

class CountedFile:
    def read_text(self):
        reads.append(threading.current_thread())
        return read()

credentials.PASSWORD_FILE = CountedFile()

def pid():
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

def rotate(password):
    with psycopg.connect(os.environ["ADMIN"], autocommit=True) as admin:
        admin.execute(f"ALTER ROLE shop PASSWORD '{password}'")
        with open(os.environ["PASSWORD_FILE"], "w") as file:
            file.write(password)
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE usename = 'shop'"
        )

assert not wrapper.validation.check(), wrapper.validation.check()
seen = [pid()]
for password in ("second", "third"):
    rotate(password)
    seen.append(pid())
assert len(set(seen)) == 3, seen
before = len(reads)
for _ in range(50):
    pid()
    wrapper.close()
print("reads for 50 leases:", len(reads) - before)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.remove()


@pytest.fixture
def admin(server: Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(**server.address) as connection:
        connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'first'")
        yield connection
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            f"WHERE usename = '{ROLE}'"
        )
        connection.execute(f"DROP ROLE {ROLE}")


def run(server: Server, directory: Path, *arguments: str) -> tuple[str, str]:
    """Run the program in the page's project; return what it printed, and what it logged."""
    run_page = load("run_page")
    run_page.make_project(list(run_page.blocks_of(PAGE)), directory)
    password_file = directory / "password"
    password_file.write_text("first", encoding="utf-8")
    program = directory / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    address = server.address
    ran = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=directory,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "settings",
            "PASSWORD_FILE": str(password_file),
            "ADMIN": psycopg.conninfo.make_conninfo(**{**address, "autocommit": None}),
            "PGHOST": HOST,
            "PGPORT": str(address["port"]),
            "PGUSER": ROLE,
            "PGPASSWORD": "",
            "PGDATABASE": "postgres",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return ran.stdout, ran.stderr


@pytest.mark.parametrize("alias", ["default", "by_class", "by_base", "by_queue"])
def test_the_pool_asks_for_each_connection_and_for_no_lease(
    alias: str, server: Server, admin: psycopg.Connection, tmp_path: Path
) -> None:
    """D6: each way of the page, word for word, through two rotations."""
    pytest.importorskip("psycopg_pool", "3.3")  # as the page says of two of them
    assert "psycopg_pool 3.3" in PAGE.read_text(encoding="utf-8")
    printed, log = run(server, tmp_path, alias)
    assert printed == "reads for 50 leases: 0\n", log


def test_a_password_of_the_settings_is_refused_after_a_rotation(
    server: Server, admin: psycopg.Connection, tmp_path: Path
) -> None:
    """The server does refuse the old one, so the tests above show something."""
    pytest.importorskip("psycopg_pool", "3.3")
    _, log = run(server, tmp_path, "default", "first")
    assert 'password authentication failed for user "shop"' in log
