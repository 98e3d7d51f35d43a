"""Gives a connection back: clean, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from .._process.locks import with_undo
from .._process.origins import find_origin
from . import telling
from .facts import Debt, Phase

logger = logging.getLogger("django_pg_real_pool")


def end(lease: Any, discard: bool = False, close: Callable[[], None] | None = None) -> None:
    """Give the connection back, by `close` if stock's is wanted, with all that it does.

    With `discard` the pool is to make another one instead.

    Otherwise the statement's result or error is not disturbed: what database or
    pool raise is logged.  Anything else, such as a time limit, is raised at the end.
    """
    if lease.phase is Phase.RETURNED:
        forget(lease)  # interrupted, the last time, right after that
        if lease.record is not None:
            telling.given_back(lease)
        return
    wrapper, hooks = lease.wrapper, lease.hooks
    # Whatever is thrown into this thread from here on, the connection is not kept, nor
    # given to anybody before it is clean.
    try:
        lease.phase = Phase.RETURNING if close is None else Phase.CLOSING
        # From here on no finaliser ends the lease; it may have done so just before.
        connection, physical = wrapper.connection, lease.physical
        is_here = physical is not None and (
            connection is physical or hooks.pool.physical(connection) is physical
        )
        if is_here:
            # First what is true after nearly all queries: it is as it was lent.
            is_as_lent = hooks.driver.mark_used(physical)
            if (discard or not is_as_lent or lease.debt or lease.sent_by_base) and (
                discard or not _is_fit(lease, physical, is_as_lent)
            ):
                hooks.pool.discard(lease)
        if lease.options.warn_held_after is not None:
            _warn_if_held_long(lease)
        if close is not None:
            close()  # arrives at the lower layer's close()
        elif hooks.close:
            _let_base_close(lease)
        elif is_here:
            hooks.pool.put(lease)
    except BaseException as error:
        if lease.phase is not Phase.RETURNED and wrapper.connection is not None:
            # Interrupted, or an override raised, before the pool had it.
            _discard(lease)
            if hooks.close:
                let_base_forget(lease)
        if close is not None or not isinstance(error, hooks.failures):
            raise
        _log_failure(lease, error)
    finally:
        lease.calls_base = False
        if lease.phase is not Phase.FREE:
            forget(lease)
        if lease.record is not None and not discard:
            telling.given_back(lease)


def _let_base_close(lease: Any) -> None:
    """Give the connection back by `close()`, with every override of the base's.

    It may roll back first, to be safe, which forgets the callbacks of on_commit().  Stock does
    not close where a transaction ends: they are kept, unless they have run by now.
    """
    wrapper = lease.wrapper
    callbacks = wrapper.run_on_commit
    waits = wrapper.run_commit_hooks_on_set_autocommit_on

    def close() -> None:
        lease.calls_base = True
        wrapper.close()  # arrives at the lower layer's close()

    def bring_back() -> None:
        if wrapper.run_commit_hooks_on_set_autocommit_on is waits:
            wrapper.run_on_commit = callbacks

    with_undo(close, bring_back)


def forget(lease: Any) -> None:
    """Forget a connection that the pool has again, or never will have."""
    lease.wrapper.connection = None  # first: what comes next may be interrupted
    lease.hooks.pool.forget(lease)
    lease.let_go()


def _is_fit(lease: Any, physical: Any, is_as_lent: bool | None) -> bool:
    """Return whether others may have the connection; clean it, if need be."""
    driver = lease.hooks.driver
    if is_as_lent is None:
        return False  # a statement was cut short
    if lease.sent_by_base:
        driver.note_sent_by_base(physical, lease.sent_by_base)
    if is_as_lent and not lease.debt:
        return True
    if lease.debt is Debt.REPLACEMENT:
        return False
    if (lease.debt or driver.is_touched(physical)) and not clean(lease):
        return False
    return _to_autocommit(lease, physical)


def _to_autocommit(lease: Any, physical: Any) -> bool:
    """Leave the connection in autocommit, as the pool has made it."""
    mode = lease.hooks.driver.autocommit(physical)
    if mode or (mode is None and lease.wrapper.autocommit):
        return True
    try:
        if lease.hooks.driver.transaction(physical, False):
            physical.rollback()
        lease.wrapper._set_autocommit(True)
    except lease.hooks.failures:
        return False  # it is broken, or in a transaction still
    return True


def clean(lease: Any) -> bool:
    """Make the session as new; return False if it must not be used again.

    It has to be set up again then.  What database or driver raise is logged.
    """
    hooks, physical = lease.hooks, lease.physical
    try:
        cleaned = hooks.driver.reset(physical)
        if cleaned:
            hooks.driver.forget_set_up(physical)
            hooks.pool.reconfigure(lease)
    except hooks.failures:
        cleaned = False
        logger.warning(
            "could not reset the session of a connection of database alias %r, so "
            "the connection is replaced",
            lease.alias,
            exc_info=True,
        )
    return bool(cleaned)


def _discard(lease: Any) -> None:
    try:
        if lease.physical is not None:
            lease.hooks.pool.discard(lease)
        lease.hooks.pool.put(lease)
    except lease.hooks.failures as error:
        _log_failure(lease, error)


def let_base_forget(lease: Any) -> bool:
    """Run the base's `close()` for a connection that went back without it.

    What the base keeps on the wrapper is wrong for the next one.  Return whether it has
    come to its end: it may want a connection, which it does not get.
    """
    wrapper = lease.wrapper
    wrapper.connection = None
    callbacks = wrapper.run_on_commit

    def close() -> None:
        lease.is_forgetting = True
        lease.close_unheld(wrapper._close_as_base)

    def end() -> None:
        lease.is_forgetting = False
        wrapper.run_on_commit = callbacks

    try:
        with_undo(close, end)
    except lease.hooks.failures as error:
        _log_failure(lease, error)
        return False
    return True


def _log_failure(lease: Any, error: Exception) -> None:
    logger.warning(
        "could not give the connection of database alias %r back to its pool",
        lease.alias,
        exc_info=error,
    )


def _warn_if_held_long(lease: Any) -> None:
    seconds, limit = monotonic() - lease.holds.since, lease.options.warn_held_after
    spans = lease.holds.spans or ()
    if seconds > limit:
        logger.warning(
            "a connection of database alias %r was held for %.1f s (%s), until %s",
            lease.alias,
            seconds,
            ", ".join(sorted({span.hold.value for span in spans})),
            find_origin(),
        )
