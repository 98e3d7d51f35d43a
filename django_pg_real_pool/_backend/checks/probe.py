"""Asks a server, beside every pool, what only a connection can tell.

It makes connections of its own and closes them again, so no pool is opened and no lease
begins.  It sends nothing but SELECTs, and waits only for a limited time.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ..._drivers.question import ask
from ..._drivers.sockets import waiter

OURS = __name__.partition(".")[0]

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


@dataclass(frozen=True)
class Unreachable:
    """With these settings the check could not connect."""

    reason: str


def probe(wrapper: Any) -> Server | Unreachable | None:
    """Look at the server of a wrapper whose driver is psycopg.

    None if it can be reached, but does not answer the question; or if it can't, but the
    base may connect in another way.
    """
    try:
        connection, refusal = _connect(wrapper)
    except Exception as error:  # noqa: BLE001 - of the driver, the settings, or a hook of theirs
        return Unreachable(_in_one_line(error)) if _connects_as_usual(wrapper) else None
    try:
        with closing(connection):
            if _pid(connection) == connection.pgconn.backend_pid:
                if refusal is not None:
                    return Unreachable(_in_one_line(refusal))
                rows = _ask(connection, ROOM)
                rooms = tuple(Room(name, int(all_), int(used)) for name, all_, used in rows)
                return Server(Pooler.NONE, rooms)
            return Server(_kind_of_pooler(wrapper, connection))
    except Exception:  # noqa: BLE001 - a query will say it better
        return None


def _connects_as_usual(wrapper: Any) -> bool:
    """Return whether the base leaves connecting to packages that are known here."""
    for name in ("get_new_connection", "_get_new_connection"):
        roots = [
            cls.__module__.partition(".")[0]
            for cls in type(wrapper).__mro__
            if name in vars(cls)
        ]
        if {*roots} - {"django", "dj_db_conn_pool", OURS}:
            return False
    return True


def _in_one_line(error: Exception) -> str:
    """Return the reason, without libpq's guesses and what psycopg repeats."""
    text, _, _ = str(error).partition("Multiple connection attempts failed")
    lines = [line for line in text.splitlines() if not line.startswith("\t")]
    said = dict.fromkeys(
        " ".join(line.removeprefix("connection failed:").split()) for line in lines
    )
    return "; ".join(filter(None, said)) or type(error).__name__


def _kind_of_pooler(wrapper: Any, one: Any) -> Pooler:
    """Say whether two clients that are connected at once share a server process."""
    try:
        with closing(_connect(wrapper)[0]) as other:
            of_one, of_other = set(), set()
            for _ in range(ROUNDS):
                of_one.add(_pid(one))
                of_other.add(_pid(other))
                if len(of_one) > 1 or len(of_other) > 1 or of_one & of_other:
                    return Pooler.OF_TRANSACTIONS
    except TimeoutError:
        pass  # the first one keeps what the second waits for
    return Pooler.OF_SESSIONS


def _connect(wrapper: Any) -> tuple[Any, Exception | None]:
    """Connect as the wrapper's pool does, but beside it.

    The second is the error, if that works only without `OPTIONS["options"]`.
    """
    options = wrapper.settings_dict["OPTIONS"].get("pool")
    options = options if isinstance(options, Mapping) else {}
    connect = getattr(options.get("connection_class"), "connect", wrapper.Database.connect)
    conninfo = options.get("conninfo", "")
    if callable(conninfo):
        conninfo = conninfo()
    params = wrapper.get_connection_params()
    if callable(params):  # as psycopg_pool takes them from 3.3 on
        params = params()
    params = {"connect_timeout": PATIENCE, **params}
    try:
        return connect(conninfo, **params), None
    except wrapper.Database.OperationalError as error:
        if params.pop("options", None) is None:
            raise
        try:  # PgBouncer refuses some of them
            return connect(conninfo, **params), error
        except wrapper.Database.OperationalError:
            raise error from None


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
