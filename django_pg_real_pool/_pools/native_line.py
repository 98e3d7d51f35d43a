"""Who waits for a connection of Django's own pool, and how it is handed over."""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from functools import cache
from typing import Any

#: What psycopg_pool's place in the line is made of.
_SLOTS = {"conn", "error", "_cond"}


class Line(deque[Any]):
    """Stands for a pool's line of waiting threads, first come, first served as ever.

    With few connections and many threads each query waits for its turn.  psycopg_pool's
    wait takes a condition to be made, locked, waited for and locked again, which is a
    third of what such a query costs; here it is one lock that somebody else releases.
    """

    def append(self, place: Any) -> None:
        # In the pool's critical section: nobody else has seen this place yet.
        kind = _place()
        if type(place) is kind.__base__:
            _with_locks(place).__class__ = kind
        super().append(place)

    def count_waiting(self) -> int:
        """Return how many wait.  Who has gone stays in the line until its turn comes."""
        return sum(not getattr(place, "has_ended", False) for place in list(self))


def new_place() -> Any:
    """Return a place for the line, made without what psycopg_pool would wait with."""
    kind = _place()
    place = kind.__new__(kind)
    place.conn = place.error = None
    return _with_locks(place)


def _with_locks(place: Any) -> Any:
    turn = allocate_lock()
    turn.acquire()
    place._cond = turn, allocate_lock()
    return place


def is_known() -> bool:
    """Return whether a place in the line is still made of what we know."""
    return set(getattr(_original(), "__slots__", ())) == _SLOTS


def _original() -> Any:
    from psycopg_pool import pool

    return getattr(pool, "WaitingClient", None)


@cache
def _place() -> Any:
    from psycopg_pool import PoolTimeout

    base = _original()

    class Place(base):  # type: ignore[misc, valid-type]
        """A place in the line.

        Of its two locks the first is released when there is something to be had; the
        second is for whoever decides how the wait ends, once: the one who gives, or the
        one who does not wait any longer.
        """

        __slots__ = ()

        @property
        def has_ended(self) -> bool:
            return self.conn is not None or self.error is not None

        def wait(self, timeout: float) -> Any:
            turn, _ = self._cond
            try:
                is_called = turn.acquire(True, timeout)
            except BaseException as interruption:
                self._end(None, interruption)
                raise
            if not is_called:
                # Unless somebody has given something, and was interrupted before the call.
                self._end(
                    None, PoolTimeout(f"couldn't get a connection after {timeout:.2f} sec")
                )
            if self.error is not None:
                raise self.error
            return self.conn

        def set(self, conn: Any) -> bool:
            return self._end(conn, None)

        def fail(self, error: BaseException) -> bool:
            return self._end(None, error)

        def _end(self, conn: Any, error: BaseException | None) -> bool:
            turn, deciding = self._cond
            with deciding:
                if self.has_ended:
                    return False
                self.conn, self.error = conn, error  # type: ignore[misc]
            turn.release()
            return True

    return Place
