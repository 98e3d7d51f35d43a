"""What the server says of the settings: warnings, because it may say otherwise tomorrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..._settings import SETTING, SessionPolicy
from .probe import Pooler, Room, Unreachable, probe


class Finding(NamedTuple):
    """A warning: its number, what is so, and what to do."""

    number: int
    message: str
    hint: str


def findings(wrapper: Any) -> Iterator[Finding]:
    """Yield what is wrong with a wrapper's settings, given the server it is to have.

    The wrapper and its pool are not used.
    """
    if wrapper.vendor != "postgresql" or wrapper.Database.__name__ != "psycopg":
        return
    server = probe(wrapper)
    if server is None:
        return
    if isinstance(server, Unreachable):
        yield Finding(
            7,
            f"can't connect: {server.reason.rstrip('.')}.",
            "Correct HOST, PORT, NAME, USER, PASSWORD, OPTIONS or TIME_ZONE in "
            f"DATABASES[{wrapper.alias!r}], or start the server.",
        )
    elif server.pooler is Pooler.OF_TRANSACTIONS:
        yield from _behind_a_pooler(wrapper.alias, wrapper.settings_dict)
    elif server.rooms:
        yield from _too_large(wrapper, server.rooms)


def _behind_a_pooler(alias: str, settings: dict[str, Any]) -> Iterator[Finding]:
    options, behind = settings["OPTIONS"], "behind a pooler in transaction mode"
    place = f"DATABASES[{alias!r}]"
    if not settings.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield Finding(
            1,
            f"{behind}, iterator() may fail: its cursor is in one session, and the next "
            "fetch may run in another.",
            f'Set {place}["DISABLE_SERVER_SIDE_CURSORS"] to True.',
        )
    if settings.get(SETTING, {}).get("SESSION_STATE", "pin") != SessionPolicy.ERROR:
        yield Finding(
            2,
            f"{behind}, a statement that changes the session changes it for other "
            "clients, and may be lost to the one that sent it.",
            f'Set {place}["{SETTING}"]["SESSION_STATE"] to "error", so that such '
            "statements are refused.",
        )
    is_prepared = options.get("server_side_binding") is True  # else nothing is, by psycopg
    if is_prepared and options.get("prepare_threshold") is not None:
        yield Finding(
            3,
            f"{behind}, a statement that psycopg has prepared may be missing in the "
            "next session, or be another client's.",
            f'Remove "prepare_threshold" from {place}["OPTIONS"]. Or silence this, if '
            "the pooler tracks prepared statements: PgBouncer 1.22 does, with "
            "max_prepared_statements, for psycopg 3.2 with libpq 17.",
        )
    if options.get("assume_role"):
        yield Finding(
            4,
            f'{behind}, "assume_role" sets the role in one session, and later '
            "statements may run in another.",
            f'Remove it from {place}["OPTIONS"], and let the server set the role: '
            f"ALTER ROLE ... SET role = '{options['assume_role']}'.",
        )
    if options.get("options"):
        yield Finding(
            5,
            f'{behind}, the startup parameters in "options" are refused or ignored.',
            f'Remove them from {place}["OPTIONS"], and let the server set them: '
            "ALTER ROLE ... SET, or ALTER DATABASE ... SET.",
        )


def _too_large(wrapper: Any, rooms: tuple[Room, ...]) -> Iterator[Finding]:
    pool = wrapper._hooks.pool
    most = pool.most(wrapper.settings_dict)
    if most is None:
        return
    tightest = min(rooms, key=lambda room: room.limit - room.used)
    others = max(0, tightest.used - (pool.census(wrapper).size or 0))
    if most > tightest.limit - others:
        yield Finding(
            6,
            f"its pool may grow to {most} connections, but {tightest.limit_name} allows "
            f"{tightest.limit}, of which others use {others} now.",
            f"Lower DATABASES[{wrapper.alias!r}]{pool.size_setting} or raise the limit. "
            "Each process has a pool of its own.",
        )
