"""Asks a server, beside every pool, what only a connection can tell.

The connections that it makes are its own and closed again, so no pool is opened and no
lease begun.  All that it sends are SELECTs, and it waits for nothing for long.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .._drivers.question import ask
from .._drivers.sockets import waiter

#: Seconds that connecting may take, unless the settings say otherwise, and an answer.
PATIENCE = 5

#: How often two connections are compared: behind a busy pooler they may look like two
#: sessions for a moment.
ROUNDS = 5

PID = "SELECT pg_backend_pid()"

# What may be seen of other roles' connections without any privilege: that they exist.
ROOM = """
WITH other AS (
    SELECT usesysid, datid FROM pg_stat_activity
    WHERE usesysid IS NOT NULL AND datid IS NOT NULL AND pid <> pg_backend_pid()
)
SELECT 'max_connections of the server',
    current_setting('max_connections')::int
    - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true), '0')::int,
    (SELECT count(*) FROM other)
UNION ALL
SELECT 'CONNECTION LIMIT of role ' || quote_ident(rolname), rolconnlimit,
    (SELECT count(*) FROM other WHERE usesysid = pg_roles.oid)
FROM pg_roles WHERE rolname = session_user AND rolconnlimit >= 0
UNION ALL
SELECT 'CONNECTION LIMIT of database ' || quote_ident(datname), datconnlimit,
    (SELECT count(*) FROM other WHERE datid = pg_database.oid)
FROM pg_database WHERE datname = current_database() AND datconnlimit >= 0
"""


class Pooler(enum.Enum):
    """What stands between us and the server."""

    #: Nothing: the process that was connected to is the one that answers.
    NONE = enum.auto()
    #: A pooler whose clients have a session each, as far as could be seen.
    OF_SESSIONS = enum.auto()
    #: A pooler that gives one server process to several clients in turn.
    OF_TRANSACTIONS = enum.auto()


@dataclass(frozen=True)
class Room:
    """A limit on connections, and how many of them are there already."""

    limit_name: str
    limit: int
    used: int


@dataclass(frozen=True)
class Server:
    """What was found."""

    pooler: Pooler
    #: Empty behind a pooler, whose connections these would be.
    rooms: tuple[Room, ...] = ()


def probe(wrapper: Any) -> Server | None:
    """Look at the server of a wrapper whose driver is psycopg; None if it can't be had."""
    try:
        with _connection(wrapper) as connection:
            if _pid(connection) == connection.pgconn.backend_pid:
                rows = _ask(connection, ROOM)
                rooms = tuple(Room(name, int(all_), int(used)) for name, all_, used in rows)
                return Server(Pooler.NONE, rooms)
            return Server(_kind_of_pooler(wrapper, connection))
    except Exception:  # noqa: BLE001 - whatever it is, the first query will say it better
        return None


def _kind_of_pooler(wrapper: Any, one: Any) -> Pooler:
    """Say whether two clients that are connected at once share a server process."""
    try:
        with _connection(wrapper) as other:
            of_one, of_other = set(), set()
            for _ in range(ROUNDS):
                of_one.add(_pid(one))
                of_other.add(_pid(other))
                if len(of_one) > 1 or len(of_other) > 1 or of_one & of_other:
                    return Pooler.OF_TRANSACTIONS
    except TimeoutError:
        pass  # the first one keeps what the second waits for
    return Pooler.OF_SESSIONS


@contextmanager
def _connection(wrapper: Any) -> Iterator[Any]:
    """Connect as the wrapper's pool does, but beside it."""
    params = {"connect_timeout": PATIENCE, **wrapper.get_connection_params()}
    try:
        connection = wrapper.Database.connect(**params)
    except wrapper.Database.OperationalError:
        if params.pop("options", None) is None:
            raise
        connection = wrapper.Database.connect(**params)  # PgBouncer refuses some of them
    try:
        yield connection
    finally:
        connection.close()


def _pid(connection: Any) -> int:
    ((pid,),) = _ask(connection, PID)
    return int(pid)


def _ask(connection: Any, sql: str) -> list[list[str]]:
    """Return the rows of a statement as text.  Raises TimeoutError."""
    # Not by a cursor, which would wait for ever, as a pooler lets its clients do.
    pgconn = connection.pgconn
    return [
        [result.get_value(row, column).decode() for column in range(result.nfields)]
        for result in ask(pgconn, waiter(pgconn.socket), sql.encode(), PATIENCE)
        for row in range(result.ntuples)
    ]
