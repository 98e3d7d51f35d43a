"""Makes of a connection what stock's connect() would have made of it."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic
from typing import Any

from django.db.backends.signals import connection_created

from .._drivers import Heard, Statement
from . import giving_back
from .facts import Debt, Phase

logger = logging.getLogger("django_pg_real_pool")

#: The wrapper's view of its transaction: what stock's connect() resets.
TRANSACTION_STATE: dict[str, Callable[[], Any]] = {
    "in_atomic_block": bool,
    "savepoint_ids": list,
    "atomic_blocks": list,
    "needs_rollback": bool,
    "rollback_exc": type(None),
    "commit_on_exit": lambda: True,
    "run_on_commit": list,
    "run_commit_hooks_on_set_autocommit_on": bool,
}


def reset_transaction_state(wrapper: Any) -> None:
    for name, initial in TRANSACTION_STATE.items():
        setattr(wrapper, name, initial())


# ##### Whether the connection can be used at all, and what it has yet to hear #####


def set_up(lease: Any) -> None:
    """Look at the connection; set it up if it has not heard what this session's are to hear.

    On return the lease has one that can be used, perhaps another.
    """
    is_done = False
    while not is_done:
        _replace_if_gone(lease)
        driver, physical = lease.hooks.driver, lease.physical
        heard, announce = driver.heard(physical), True
        if heard is not None and heard == lease.heard:
            driver.mark_heard(physical, lease.heard)  # compared by identity from here on
            announce = False
        is_done = True
        if announce or lease.hooks.init_every_time:
            try:
                with outside_transaction(lease):
                    is_done = _set_up(lease, announce)
            except BaseException:
                # Something was set, perhaps, before something else raised.
                driver.forget_set_up(physical)
                lease.owe(Debt.CLEANING)
                raise


def _replace_if_gone(lease: Any) -> None:
    hooks = lease.hooks
    rejected: Any = None
    while True:
        if lease.wrapper.connection is None:
            lease.get()
        physical = lease.physical
        if physical is rejected or hooks.driver.is_usable(
            physical, lease.options.check_after_idle
        ):
            # The same again: this pool does not notice that it was closed.
            return
        rejected = physical
        logger.info(
            "a connection of database alias %r was closed by the server or on the "
            "way, so it is replaced",
            lease.alias,
        )
        lease.is_rejected = True
        _discard(lease)


def _discard(lease: Any) -> None:
    giving_back.end(lease, discard=True)
    lease.phase = Phase.TAKING


def _set_up(lease: Any, announce: bool) -> bool:
    """Do the rest of stock's connect() with the connection that is there.

    What is sent meanwhile is the connection's configuration.  What receivers send is noted,
    because it may be of this request: its user, its tenant.  Returns False, and the lease
    has no connection then, where this one can't be made to be of this request alone.
    """
    wrapper, hooks, physical = lease.wrapper, lease.hooks, lease.physical
    before = hooks.driver.heard(physical)
    with noting(lease):
        if announce:
            wrapper.check_settings()
            hooks.pool.introduce(lease)
        apply_autocommit(lease)
        wrapper.init_connection_state()
    if not announce:
        hooks.driver.mark_set_up(physical, before or ())
        return True
    if before is None:
        hooks.driver.mark_set_up(physical, ())  # what a cleaning is to lead back to
    with noting(lease) as noted:
        connection_created.send(sender=wrapper.__class__, connection=wrapper)
    heard: Heard = tuple(noted)
    # What was set then and not set now is of another request, perhaps.
    is_left = before and before != heard and not _sets_all_of(heard, before)
    if is_left and not clean(lease, say=heard):
        _discard(lease)
        return False
    if before == heard:
        heard = before or ()  # the same object: it is compared by identity
    if heard == lease.heard:
        heard = lease.heard
    is_new = before is None
    if is_new or hooks.init_every_time or connection_created.receivers:
        # Whatever they made of it is how it is to be after a cleaning.
        hooks.driver.mark_set_up(physical, heard)
    else:
        hooks.driver.mark_heard(physical, heard)
    lease.heard = heard
    return True


def clean(lease: Any, say: Heard) -> bool:
    """Make the session as new, and say again what was sent to it; return whether it is."""
    hooks, physical = lease.hooks, lease.physical
    if not hooks.driver.reset(physical):
        return False
    hooks.pool.reconfigure(lease)
    with outside_transaction(lease), noting(lease):
        lease.wrapper.init_connection_state()
        hooks.driver.say(physical, say)
    return True


_SET = re.compile(r"\s*set\s+(?:session\s+)?([\w.\"]+)[^;]*;?\s*\Z", re.IGNORECASE)


def _sets_all_of(now: Heard, before: Heard) -> bool:
    """Return whether statements set all that others had set, if to another value."""
    return set(map(_what_is_set, before)) <= set(map(_what_is_set, now))


def _what_is_set(said: Statement) -> Any:
    """Return what a statement sets, without what it sets that to."""
    sql, _ = said
    match = _SET.match(sql) if isinstance(sql, str) else None
    return match.group(1).lower() if match else str(sql)


def make_base_cursor(lease: Any, make: Callable[[], Any]) -> Any:
    """Call a base's own `_cursor()`, and see to it that nothing of another lease's is left.

    What it sends, it sends for each cursor anew, or once for a lease, until its `close()`.
    So it need not be undone, unless the next lease does not set the same.
    """
    if not lease.has_connection():
        lease.take()
    with noting(lease) as noted:
        cursor = make()
    sent = tuple(noted)
    if lease.sent_by_base is None:  # in this lease it is the first
        before = lease.hooks.driver.sent_by_base(lease.physical)
        if before and not _sets_all_of(sent, before):
            lease.hooks.driver.note_sent_by_base(lease.physical, ())
            if not clean(lease, say=(*(lease.heard or ()), *sent)):
                lease.physical.close()  # nobody may use it as it is
            apply_autocommit(lease)
    lease.sent_by_base = (*(lease.sent_by_base or ()), *sent)
    return cursor


@contextmanager
def noting(lease: Any) -> Iterator[list[Statement]]:
    """Note the statements that are sent, until the end of the block."""
    noted: list[Statement] = []
    before, lease.noting = lease.noting, noted
    stop = lease.hooks.driver.listen(lease.physical, noted)
    try:
        yield noted
    finally:
        stop()
        lease.noting = before


# ##### Where the wrapper is #####


def bring_up_to_date(lease: Any) -> None:
    """Bring a connection that can be used to where the wrapper is."""
    apply_autocommit(lease)
    send_savepoints(lease)
    lease.holds.since = monotonic()


def apply_autocommit(lease: Any) -> None:
    wrapper = lease.wrapper
    if lease.hooks.driver.autocommit(lease.physical) is not wrapper.autocommit:
        wrapper._set_autocommit(wrapper.autocommit)


@contextmanager
def outside_transaction(lease: Any) -> Iterator[None]:
    """Show the state of a wrapper that has just connected, as stock would.

    A connection may be taken inside a block, but what sets it up, receivers of
    connection_created included, must not become a part of the transaction.  Nor is
    it for those to see who count, log or forbid queries now: for all but the first
    connection since close(), stock would have done it long ago.
    """
    wrapper, is_first = lease.wrapper, lease.heard is None
    if (
        is_first
        and not wrapper.in_atomic_block
        and wrapper.autocommit is lease.default_autocommit
    ):
        yield
        return
    saved = {name: getattr(wrapper, name) for name in TRANSACTION_STATE}
    saved["autocommit"] = wrapper.autocommit
    if not is_first:
        saved["queries_log"] = wrapper.queries_log
        saved["execute_wrappers"] = wrapper.execute_wrappers
        wrapper.queries_log, wrapper.execute_wrappers = deque(maxlen=0), []
    unsent, lease.unsent_savepoints = lease.unsent_savepoints, []
    reset_transaction_state(wrapper)
    wrapper.autocommit = lease.default_autocommit
    try:
        yield
    finally:
        lease.unsent_savepoints = unsent
        for name, value in saved.items():
            setattr(wrapper, name, value)


def send_savepoints(lease: Any) -> None:
    """Send the savepoints of the open blocks, as they would have been sent.

    Whoever watches the wrapper, its cursors or their class sees them pass.
    """
    if not lease.unsent_savepoints:
        return
    wrapper = lease.wrapper
    unsent, lease.unsent_savepoints = lease.unsent_savepoints, []
    wrappers_now, is_broken = wrapper.execute_wrappers, wrapper.needs_rollback
    try:
        for sid, wrappers in unsent:
            wrapper.execute_wrappers, wrapper.needs_rollback = wrappers, False
            # With a cursor as any other: what a base does when it makes one (a SET,
            # say) comes before the savepoint, as in stock, and survives it.
            with wrapper.cursor() as cursor:
                cursor.debug_sql = _was_logged
                cursor.execute(wrapper.ops.savepoint_create_sql(sid))
    except BaseException:
        lease.unsent_savepoints = unsent
        raise
    finally:
        wrapper.execute_wrappers, wrapper.needs_rollback = wrappers_now, is_broken


def _was_logged(*args: Any, **kwargs: Any) -> Any:
    """Stand for a debug cursor's logging of what was logged when it was asked for."""
    return nullcontext()
