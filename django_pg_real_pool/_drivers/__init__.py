"""What differs between database drivers, asked of a connection that is checked out.

`Driver` is the safe default for a driver that this library has never seen: whatever it
can't know, it answers so that the connection is held longer, or replaced.  `physical`
is the driver's own connection; `connection` is what the wrapper has as
`self.connection`, which may be a pool's proxy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

from .._process.locks import T
from .._process.weak import WeakBag, WeakMap
from .sockets import cut

#: A statement as it was sent, with a copy of its parameters.
Statement = tuple[Any, Any]
#: What stands for attributes of a connection among its statements.
TOUCHED = "(attributes)"
#: What the text of a statement begins with that has failed, or may be rolled back.
PERHAPS = "(perhaps) "
#: What a connection has heard: statements, in order.
Heard = tuple[Statement, ...]
#: What a connection has heard that does not know all types: it must be cleaned.  It is not
#: new, since it has heard something before, perhaps of another request.
RENEW: Heard = (("(types)", None),)

#: Every physical connection of this process that is known, except psycopg's.
_physicals: WeakBag[Any] = WeakBag()


def cut_inherited() -> None:
    """In a forked child: put the parent's connections out of reach, as far as we can.

    Collecting one, even at the child's end, may say goodbye to the server.
    """
    for physical in _physicals:
        file = None
        with suppress(Exception):  # it has no such thing, or is closed
            file = physical.fileno()
        if file is None:
            _make_immortal(physical)
        else:
            cut([file])
    _physicals.clear()


def _make_immortal(physical: Any) -> None:
    """Keep an object from being collected, even when the interpreter ends."""
    from ctypes import py_object, pythonapi

    pythonapi.Py_IncRef(py_object(physical))


class Driver:
    """Any driver that follows PEP 249."""

    #: `transaction()` only guesses, by the mode.
    guesses = True
    #: `mode_if_ready()` and `is_usable()` see that a connection was closed by the server.
    notices_closing = False

    def __init__(self) -> None:
        #: What each connection last heard; one that is absent is not set up.
        self._heard = WeakMap[Any, Heard]()
        self._sent_by_base = WeakMap[Any, Heard]()

    # ##### What is known of a physical connection #####

    def heard(self, physical: Any) -> Heard | None:
        """Return what was sent to set this connection up; None: it is not set up.

        That is, the statements of its last announcement, with their parameters.
        """
        # Without weak references nothing is remembered: it counts as new each time.
        with suppress(TypeError):
            return self._heard.get(physical)
        return None

    def mark_set_up(self, physical: Any, heard: Heard) -> None:
        """Note what a connection has heard, and that it is now as it should be."""
        with suppress(TypeError):
            self._heard[physical] = heard
            _physicals.add(physical)

    def forget_set_up(self, physical: Any) -> None:
        with suppress(TypeError):
            self._heard.discard(physical)

    def sent_by_base(self, physical: Any) -> Heard:
        """Return what a base's own `_cursor()` sent when the connection was last lent."""
        with suppress(TypeError):
            return self._sent_by_base.get(physical) or ()
        return ()

    def note_sent_by_base(self, physical: Any, sent: Heard) -> None:
        with suppress(TypeError):
            self._sent_by_base[physical] = sent

    def forget_others(self, physical: Any) -> None:
        """Let all other connections to the same database be cleaned and set up anew."""
        for other in self._heard:
            if other is not physical:
                self.mark_heard(other, RENEW)

    def snapshot(self, physical: Any) -> None:
        """Remember the driver's side of the session, for `reset` and `has_new_types`."""

    def mark_heard(self, physical: Any, heard: Heard) -> None:
        """Note what a connection has heard, and nothing else."""
        self.mark_set_up(physical, heard)

    def mark_used(self, physical: Any) -> bool | None:
        """Note that the connection worked until now, and return how it comes back.

        True: as it was lent, in autocommit and untouched.  False: perhaps not.  None: a
        statement was cut short, and its answer is yet to come.
        """
        return False

    def is_stuck(self, physical: Any) -> bool:
        """Return whether the connection's own lock is held: perhaps by nobody."""
        return False

    def cut(self, physical: Any) -> None:
        """Close a connection that is stuck, and release its lock."""

    def mode_if_ready(
        self, physical: Any, heard: Heard | None, window: float | None, now: float
    ) -> bool | None:
        """Return the autocommit mode of a connection that can be used as it is.

        None: it has heard something else than `heard`, or must be checked.  `now` is
        `time.monotonic()`.
        """
        return None

    def is_usable(self, physical: Any, window: float | None) -> bool:
        """Return whether the server is still there, without a round trip.

        Only a connection that was idle for more than `window` seconds costs one.
        """
        return True

    # ##### The session #####

    def autocommit(self, physical: Any) -> bool | None:
        """Return the connection's autocommit mode; None when it can't be told."""
        return None

    def transaction(self, physical: Any, autocommit: bool) -> bool | None:
        """Return whether the connection is in a transaction; None if it is broken."""
        return not autocommit

    def is_busy(self, physical: Any) -> bool:
        """Return whether a statement is under way, so that nobody knows what comes of it."""
        return False

    def has_failed(self, physical: Any) -> bool:
        """Return whether the transaction that the connection is in can only be rolled back."""
        return False

    def has_run(self, cursor: Any) -> bool:
        """Return whether a cursor has run a statement, and `transaction()` may know more."""
        return False

    def may_have_begun(self, cursor: Any) -> bool:
        """Return whether a transaction may have begun with the last statement of a cursor.

        It is asked where that can't be seen, because the connection is broken by now.
        """
        return False

    def is_touched(self, physical: Any) -> bool:
        """Return whether the connection object itself was changed since it was set up."""
        return False

    def has_new_types(self, physical: Any) -> bool:
        """Return whether types were registered with the connection since it was set up."""
        return False

    def restore(self, physical: Any) -> None:
        """Undo what receivers have set on the connection itself, before they are sent anew."""

    def touches(self, physical: Any) -> Heard:
        """Return what receivers have set on the connection itself, as if it was sent."""
        return ()

    def listen(
        self,
        physical: Any,
        noted: list[Statement],
        do: Callable[[], T],
        in_block: bool = False,
    ) -> T:
        """Return what `do` returns, having added to `noted` what was sent meanwhile.

        A statement that has failed is noted as such; so is one that may be rolled back,
        unless it is sent in the user's own block.  What is sent by a cursor that the driver
        does not hear is left to Django's.
        """
        return do()

    def hears(self, cursor: Any) -> bool:
        """Return whether `listen()` notes what is sent by a cursor."""
        return False

    def say(self, physical: Any, statements: Heard) -> None:
        """Send statements again, as they were heard."""
        cursor = physical.cursor()
        for sql, params in statements:
            cursor.execute(sql, *(() if params is None else (params,)))
        cursor.close()

    def end(self, physical: Any) -> None:
        """Close the connection for good: nobody may have it as it is."""
        physical.close()

    def reset(self, physical: Any) -> bool:
        """Make the session as it was when it was new; return False if it can't be."""
        return False

    # ##### Cursors #####

    def detach(self, cursor: Any, may_ask: bool) -> bool:
        """Make sure that `cursor` never reaches its connection again.

        Return whether it has left nothing on the server, which is asked only if it `may_ask`.
        """
        if may_ask:
            cursor.close()
        return may_ask

    def abandon(self, cursor: Any) -> None:
        """Like `detach`, in a forked child: without a byte to the parent's server."""

    def close_portal(self, connection: Any, name: str) -> None:
        """Close the server's side of a named cursor that was dropped unclosed."""


def statement(query: Any, params: Any, context: Any) -> Statement:
    """Return a statement as it is noted: a copy, which its sender can't change later."""
    if hasattr(query, "as_string"):
        query = query.as_string(context)
    if isinstance(params, Mapping):
        return query, dict(params)
    return query, None if params is None else tuple(params)


def text_of(sql: Any) -> str:
    """Return the text of a statement as it is noted; of one that has none, what it is."""
    if isinstance(sql, bytes):
        return sql.decode(errors="backslashreplace")
    return sql if isinstance(sql, str) else repr(sql)


def perhaps(said: Statement) -> Statement:
    """Return a statement that may not have set what it would set."""
    sql, params = said
    return PERHAPS + text_of(sql), params


def driver_for(database: ModuleType) -> Driver:
    """Return the driver for a wrapper class's `Database` module."""
    if database.__name__ == "psycopg":
        from .psycopg3 import Psycopg

        return Psycopg()
    return Driver()
