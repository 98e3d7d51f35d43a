"""What others do to a lease from outside: the reaper, and a forked child.

These are methods of `Lease`, in a file of their own.  They never wait for anything: not for
a lock that a thread at work has, nor for a server.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from .._process.locks import try_locked
from . import cursors, setup
from .facts import Debt, Phase, Transaction, Use
from .rule import Hold

logger = logging.getLogger("django_pg_real_pool")


def reap(lease: Any) -> None:
    """Give back a connection that nobody else will."""
    if not lease.is_held:
        return
    if lease.owner.is_alive() or lease.wrapper.allow_thread_sharing:
        if _is_stuck(lease):
            try_locked(lease, _settle_if_stuck, lease)
    elif lease.owner is not threading.main_thread():  # after which the process ends
        try_locked(lease, _give_up_if_left, lease)


def _give_up_if_left(lease: Any) -> None:
    # Asked again, within the lock: since then, another thread may go on with it.
    if not lease.wrapper.allow_thread_sharing:
        _give_up(lease, f"belongs to thread {lease.owner.name!r}, which has ended")


def _is_stuck(lease: Any) -> bool:
    """Return whether an interruption has left a lease that nothing holds."""
    return (
        lease.wrapper.connection is not None
        and not lease.keepers  # which a section ends that is at work
        and (
            lease.phase is not Phase.HELD
            or not lease.holds.now
            or bool(lease.closed_elsewhere)
        )
    )


def _settle_if_stuck(lease: Any) -> None:
    # Nobody is at work on it: this thread has the lock.
    if not _is_stuck(lease):
        return
    if lease.phase is not Phase.HELD:
        _break(lease)
        lease._forget_interrupted()
        return
    lost = cursors.reclaim(lease, politely=False)
    is_simple = not lease.debt and lease.wrapper.autocommit and not lease.hooks.close
    if not lease.holds.now and not is_simple:
        _break(lease)
    lease.kept = 0  # an interruption at its end has left it
    lease._settle()
    cursors.warn_of(lost)


def _break(lease: Any) -> None:
    """Let the connection be replaced, without a round trip.

    To be polite could take this thread's time, for ever: the network may be dead.
    """
    if lease.physical is not None:
        lease.hooks.driver.end(lease.physical)
    lease.portals.clear()
    lease.owe(Debt.REPLACEMENT)


def give_up(lease: Any, why: str) -> None:
    """Replace a connection that nobody will give back, and begin anew."""
    # If another thread has the lock, it shares the wrapper, and is at work.
    try_locked(lease, _give_up, lease, why)


def _give_up(lease: Any, why: str) -> None:
    if lease.wrapper.connection is None:
        return
    logger.warning(
        "a wrapper of database alias %r %s: its connection (%s) is replaced",
        lease.alias,
        why,
        ", ".join(lease.describe_holds()) or "no hold",
    )
    # Nobody knows what it was doing, or whether the server answers.  So it is replaced:
    # a polite end could block this thread for ever.
    try:
        _break(lease)
        lease.drop()
    finally:
        lease.transaction = Transaction.NONE
        setup.reset_transaction_state(lease.wrapper)
        lease.end_session()


def forget_parent(lease: Any) -> Any:
    """In a forked child: forget the parent's connection, and return it."""
    lease._lock, lease._holder = threading.RLock(), 0
    lease.kept = lease.wrapping = 0
    lease.keepers.clear()
    lease.closers.clear()
    lease.calls_base = lease.is_forgetting = lease.is_connecting = False
    visit, lease.visit = lease.visit, None
    if lease.use is not Use.POOLED and not (visit is not None and visit.is_open):
        return None
    for find in lease.holds.now.get(Hold.CURSOR, {}).values():
        cursor = find() if find is not None else None
        if cursor is not None:
            lease.hooks.driver.abandon(cursor)
    connection = lease.let_go()
    lease.is_base_unaware = lease.hooks.close
    lease.portals.clear()
    lease.closed_elsewhere.clear()
    lease.noting = lease.pool_stand_in = None
    # The parent's transaction is not the child's, whatever block it is in.
    lease.transaction = Transaction.NONE
    setup.reset_transaction_state(lease.wrapper)
    lease.end_session()
    return connection, visit
