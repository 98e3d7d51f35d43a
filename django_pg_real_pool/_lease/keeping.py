"""While code runs that needs the connection, nobody but `close()` gives it back.

Within the lease's lock a number says so, `kept`; without it a set, `keepers`, because who
waits there may wait for a thread that wants the lock.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .._process.locks import T, locked, with_undo
from .facts import Use

POOLED = Use.POOLED


def secure(lease: Any, take: Callable[[], None]) -> None:
    """Take a connection if there is none, and add one to `kept`.

    The caller brings that back, also when this raises.
    """
    kept = lease.kept
    while True:
        if not lease.has_connection():
            if lease.use is not POOLED:
                lease.begin()  # a thread that shares the wrapper has closed it
            take()
        lease.kept = kept + 1
        if lease.has_connection():
            return
        lease.kept = kept  # a signal handler's query has ended what was taken


def once_secure(lease: Any, take: Callable[[], None], do: Callable[[], None]) -> None:
    """Take a connection if there is none, and keep it until `do` has returned."""
    kept = lease.kept

    def secure_and_do() -> None:
        secure(lease, take)
        do()

    with_undo(secure_and_do, partial(setattr, lease, "kept", kept))


def keep_while(lease: Any, do: Callable[[], T]) -> T:
    """Return what `do` returns; until then the connection is kept."""
    kept = lease.kept

    def keep_and_do() -> T:
        lease.kept = kept + 1
        return do()

    return with_undo(keep_and_do, partial(setattr, lease, "kept", kept))


def with_connection(
    lease: Any, do: Callable[[], T], otherwise: Callable[[], None] = lambda: None
) -> T | None:
    """Return what `do` returns; until then nobody but close() gives the connection back.

    Not the reaper, nor a thread that shares the wrapper, nor a finaliser.  Where there
    is no connection, `otherwise` is done, within the lock, and None is returned.
    """
    keeper = object()

    def keep_and_do() -> T | None:
        return do() if _keep(lease, keeper, otherwise) else None

    return with_undo(keep_and_do, partial(end_keeping, lease, keeper))


@locked
def _keep(lease: Any, keeper: object, otherwise: Callable[[], None]) -> bool:
    lease.keepers.add(keeper)  # first: a finaliser may end the lease before that
    if lease.has_connection():
        return True
    lease.keepers.discard(keeper)
    otherwise()
    return False


@locked
def end_keeping(lease: Any, keeper: object, is_over: bool = False) -> None:
    lease.keepers.discard(keeper)
    lease._settle(is_over)
