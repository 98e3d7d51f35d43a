"""F2, F4, R1: systems that have no fork(), no poll(), or no C library to be asked for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from django.db import connections

#: What a system lacks, by its name: run before anything else is imported.  Windows lacks all.
LACKING = {
    "fork": "del os.fork, os.register_at_fork",
    "poll": "del select.poll",
    # ctypes wants the name of a library there.
    "PyDLL": "ctypes.PyDLL = lambda name: ctypes.CDLL(name + '')",
}
LACKING["all"] = "; ".join(LACKING.values())

#: Each thing is used once: queries, a block, an iterator, a lost server process, a pool that
#: is exhausted, a thread that ends with a lease.
PROGRAM = """
import ctypes, os, select, sys, threading, time
exec(sys.argv[1])

import django
from django.conf import settings

database = {
    "ENGINE": sys.argv[2],
    "NAME": os.environ["PGDATABASE"],
    "OPTIONS": {},
}
if sys.argv[2].endswith("dj_db_conn_pool"):
    database["POOL_OPTIONS"] = {"POOL_SIZE": 1, "MAX_OVERFLOW": 0, "TIMEOUT": 0.2}
else:
    database["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 1, "timeout": 0.2}
settings.configure(DATABASES={"default": database})
django.setup()

from django.db import OperationalError, connection
from django.db.transaction import atomic, on_commit
from django_pg_real_pool import assert_released, pin_connection, pool_status


def one(sql, *params):
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0]


pid = one("SELECT pg_backend_pid()")
assert_released()
with atomic():
    on_commit(assert_released)
    assert one("SELECT pg_backend_pid()") == pid

# The server ends the connection while it is idle: seen at the next checkout.
import psycopg
with psycopg.connect(dbname=os.environ["PGDATABASE"], autocommit=True) as other:
    other.execute("SELECT pg_terminate_backend(%s, 5000)", [one("SELECT pg_backend_pid()")])
    deadline = time.monotonic() + 10
    while other.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", [pid]
    ).fetchone()[0]:
        assert time.monotonic() < deadline
assert one("SELECT pg_backend_pid()") != pid

# And this end closes the socket.
with pin_connection():
    physical = connection._lease.physical
os.close(physical.fileno())
assert one("SELECT 1") == 1

with pin_connection():
    errors = []

    def try_it():
        try:
            one("SELECT 1")
        except OperationalError as error:
            errors.append(str(error))

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert "couldn't get a connection" in errors[0], errors

thread = threading.Thread(target=pin_connection().__enter__)
thread.start()
thread.join()
deadline = time.monotonic() + 10
while pool_status().leases:
    assert time.monotonic() < deadline
assert one("SELECT 2") == 2
print("all is well")
connection.close()
connection.close_pool()
"""


@pytest.mark.parametrize(
    ("alias", "lacking"), [*(("native", each) for each in LACKING), ("dj", "all")]
)
def test_a_system_lacks_something(alias: str, lacking: str) -> None:
    ran = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, LACKING[lacking]),
            connections[alias].settings_dict["ENGINE"],
        ],
        env={**os.environ, "PGDATABASE": connections[alias].settings_dict["NAME"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stdout == "all is well\n", ran.stderr
