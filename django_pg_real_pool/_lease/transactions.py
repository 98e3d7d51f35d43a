"""Where a transaction begins and ends, and what is refused when it is lost.

`began()` and `ended()` note it as a fact.  It is no conclusion from the driver's status:
a connection that is broken has none.
"""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable
from typing import Any

from django.db import OperationalError

from .._process.locks import locked, with_undo
from .._process.origins import find_origin
from . import keeping
from .facts import Phase, Transaction
from .rule import Event, Hold

# What each query needs: before Python 3.12, to look a member up in its enum is slow.
NONE, BEGUN, LOST = Transaction.NONE, Transaction.BEGUN, Transaction.LOST
TRANSACTION, TAKING = Hold.TRANSACTION, Phase.TAKING


_UNREAD = object()


def refuse_if_lost(lease: Any) -> None:
    """Raise OperationalError if a transaction has begun whose connection is gone."""
    if lease.transaction is not NONE and lease.wrapper.connection is None:
        lease.transaction = LOST
        raise OperationalError(
            f"the connection of database alias {lease.alias!r} is lost, and the "
            "transaction with it: no statement can be sent until the block ends, or "
            "rollback() or close() is called"
        )


def began(lease: Any) -> None:
    lease.holds.happened(Event.TRANSACTION_BEGAN)
    lease.transaction = BEGUN
    if lease.options.track_origins:
        lease.holds.origins[None] = find_origin()


def ended(lease: Any) -> None:
    lease.transaction = NONE
    lease.holds.happened(Event.TRANSACTION_ENDED)


@locked
def look_at_transaction(lease: Any) -> None:
    """Note a transaction that no cursor has noted yet."""
    look(lease)


def look(lease: Any, raw: Any = None) -> None:
    in_transaction = is_in_transaction(lease)
    if in_transaction:
        if TRANSACTION not in lease.holds.now:
            began(lease)
    elif in_transaction is False and (
        lease.transaction is BEGUN or TRANSACTION in lease.holds.now
    ):
        if not lease.hooks.driver.is_busy(lease.physical):  # whose answer is yet to come
            ended(lease)
    elif in_transaction is None and lease.hooks.driver.may_have_begun(raw):
        began(lease)
    # None: the connection is broken, which does not end what began on it.


def is_in_transaction(lease: Any) -> bool | None:
    """Ask the driver; None: the connection is broken, or went away behind our back."""
    connection, physical = lease.wrapper.connection, lease.physical
    if physical is not connection and (
        physical is None or lease.hooks.pool.physical(connection) is not physical
    ):
        return None
    in_transaction = lease.hooks.driver.transaction(physical, lease.wrapper.autocommit)
    return in_transaction  # type: ignore[no-any-return]


def cut_if_stuck(lease: Any) -> None:
    """Close a connection that an interruption has left locked, and unlock it.

    Whoever uses it would wait for ever, even where it is closed.  Where threads share
    it, another may be using it now.
    """
    physical = lease.physical
    if (
        physical is not None
        and lease._holder in (0, get_ident())  # else another thread is ending a portal
        and not lease.wrapper.allow_thread_sharing
        and lease.hooks.driver.is_stuck(physical)
    ):
        lease.hooks.driver.cut(physical)


def end_transaction(lease: Any, commit_or_roll_back: Callable[[], None]) -> None:
    """End the transaction by Django's `commit()` or `rollback()`, and settle.

    That comes before Django switches autocommit on, and so before the callbacks of
    on_commit() run.
    """
    keeper, has_returned = object(), False
    physical: Any = _UNREAD

    def keep_and_do() -> None:
        nonlocal physical, has_returned
        # Also where there is no connection: a thread that shares the wrapper may take one.
        lease.keepers.add(keeper)
        physical = _get_physical(lease)
        commit_or_roll_back()
        has_returned = True

    with_undo(keep_and_do, lambda: _note_end(lease, keeper, physical, has_returned))


@locked
def _get_physical(lease: Any) -> Any:
    return lease.physical  # not while somebody gives it back


@locked
def _note_end(lease: Any, keeper: object, physical: Any, was_told: bool) -> None:
    is_over = False
    try:
        is_unread = physical is _UNREAD and not lease.wrapper.allow_thread_sharing
        if is_unread or lease.physical is physical:  # else a sharing thread has closed it
            is_over = _look_at_end(lease, was_told)
    finally:
        keeping.end_keeping(lease, keeper, is_over)


def _look_at_end(lease: Any, was_told: bool) -> bool:
    """Return whether the transaction is over, as far as the driver can't see it.

    `was_told`: commit() or rollback() has returned.  If it has raised and the connection
    is broken, the transaction has ended, too.
    """
    if lease.wrapper.connection is None:
        return False
    if not was_told:
        cut_if_stuck(lease)
        _end_if_cut_short(lease)
    in_transaction = is_in_transaction(lease)
    lease.is_end_missing = bool(in_transaction) and not was_told
    if in_transaction is not None and not (was_told and lease.hooks.driver.guesses):
        return False
    if not was_told:
        _forget_callbacks(lease)
    ended(lease)
    return True


def _end_if_cut_short(lease: Any) -> None:
    """Close a connection whose COMMIT or ROLLBACK was left before the answer came.

    Django switches autocommit on next, which would raise an error of its own, in the
    place of the time limit, say, that has cut it short.
    """
    physical, driver = lease.physical, lease.hooks.driver
    is_mine = physical is not None and not lease.wrapper.allow_thread_sharing
    if is_mine and driver.mark_used(physical) is None:
        driver.end(physical)


def end_transaction_of_set_up(lease: Any) -> None:
    """Note that what receivers or a base began, while a connection is taken, has ended.

    They may have left one open: then it goes on.
    """
    if (
        lease.phase is TAKING
        and lease.wrapper.connection is not None
        and (lease.transaction is not NONE or TRANSACTION in lease.holds.now)
        and not is_in_transaction(lease)
    ):
        ended(lease)


def forget_transaction(lease: Any) -> None:
    """Note the end of a transaction whose connection is gone."""
    if lease.transaction is not NONE and lease.wrapper.connection is None:
        _forget_callbacks(lease)
        ended(lease)


def _forget_callbacks(lease: Any) -> None:
    """Let no callback run of a transaction that is lost."""
    lease.wrapper.run_on_commit = []
    lease.wrapper.run_commit_hooks_on_set_autocommit_on = False
