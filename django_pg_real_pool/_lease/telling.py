"""Tells observers of a lease, and serves what they ask of the database meanwhile.

Observers are called where the wrapper may be in the middle of anything: in a block, say.
So all of that is put aside.  What an observer does with this wrapper is done in a session
of its own, which is not observed.  Of that session nothing is left afterwards.
"""

from __future__ import annotations

from _thread import get_ident
from collections import deque
from functools import partial
from time import monotonic
from typing import Any

from .. import observers
from .._process.locks import with_undo
from .._process.origins import find_origin
from .facts import TRANSACTION_STATE, Use

NONE, POOLED = Use.NONE, Use.POOLED

#: What else of a wrapper a session begins anew, or others are not to see.
_OF_WRAPPER = (
    *(*TRANSACTION_STATE, "autocommit", "close_at", "closed_in_transaction"),
    *("errors_occurred", "execute_wrappers", "health_check_done", "queries_log"),
)
#: And what of a lease.
_OF_LEASE = (
    *("heard", "is_end_missing", "is_off_by_atomic", "kept", "noting", "options"),
    *("phase", "source", "transaction", "unsent_savepoints", "wrapping"),
)


class Visit:
    """What is put aside of a lease while observers are told of it."""

    __slots__ = ("connection", "is_open", "is_used", "of_lease", "of_wrapper")

    def __init__(self) -> None:
        #: Whether an observer is told of the lease now.
        self.is_open = False
        #: The connection that was taken, if an observer has not needed it.
        self.connection: Any = None
        #: Whether an observer has begun a session with this wrapper.
        self.is_used = False
        self.of_wrapper: dict[str, Any] = {}
        self.of_lease: dict[str, Any] = {}


def taken(lease: Any, started: float) -> None:
    """Tell that a connection was taken, for which the thread has waited since `started`.

    On return the wrapper has none if an observer needed it.
    """
    now, record, wrapper = monotonic(), lease.record, lease.wrapper
    if record is not None and record.ended is None:
        record.waited += now - started  # the one before was broken
        return
    if get_ident() in observers.telling:
        return
    record = observers.Lease(wrapper.alias, wrapper._thread_ident, now - started, now)
    try:
        if observers.hearing["taken"]:
            _tell(lease, "taken", record)
    finally:
        lease.holds.watch(find_origin if observers.wants_origins else None)
        lease.record = record


def given_back(lease: Any) -> None:
    """Tell that the pool has the connection again."""
    record, lease.record = lease.record, None
    holds = lease.holds
    record._spans, holds.spans = holds.spans or [], None
    record.ended = monotonic()
    if observers.hearing["given_back"]:
        _tell(lease, "given_back", record)


def timed_out(lease: Any, waited: float) -> None:
    """Tell that no connection was free: later, since to query now is to wait once more."""
    if get_ident() not in observers.telling:
        observers.tell_later("timed_out", lease.alias, waited)


def _tell(lease: Any, event: str, record: observers.Lease) -> None:
    wrapper = lease.wrapper
    if wrapper._thread_ident != get_ident() or wrapper._thread_sharing_count:
        # The reaper has other things to do; and what threads share can't be put aside.
        observers.tell_later(event, record)
        return
    visit = lease.visit
    if visit is None:
        visit = lease.visit = Visit()

    def put_aside_and_tell() -> None:
        visit.connection, visit.is_open = wrapper.connection, True
        wrapper.connection = None
        lease.use = NONE  # so a session begins by begin(), which admits the visitor
        if wrapper.in_atomic_block or wrapper.run_on_commit:
            _put_aside(wrapper, visit)
        observers.tell(event, record)

    with_undo(put_aside_and_tell, partial(_see_off, lease))


def _put_aside(wrapper: Any, visit: Visit) -> None:
    for name, initial in TRANSACTION_STATE.items():
        visit.of_wrapper[name] = getattr(wrapper, name)
        setattr(wrapper, name, initial())


def admit(lease: Any) -> None:
    """Make room for a session of an observer, which is about to begin."""
    visit, wrapper = lease.visit, lease.wrapper
    if visit.is_used:
        return  # it has closed its first one
    for name in _OF_WRAPPER:
        visit.of_wrapper.setdefault(name, getattr(wrapper, name))
    visit.of_lease = {name: getattr(lease, name) for name in _OF_LEASE}
    visit.is_used = True
    if visit.connection is not None:
        # It may be the only one that there is.
        wrapper.connection, visit.connection = visit.connection, None
        lease.drop()
    wrapper.execute_wrappers, wrapper.queries_log = [], deque(maxlen=0)
    lease.unsent_savepoints, lease.noting = [], None
    lease.kept = lease.wrapping = 0


def _see_off(lease: Any) -> None:
    """Bring everything back, but not a connection that an observer needed.

    It may be interrupted, and is then done again; only its end says that it is done.
    """
    visit, wrapper = lease.visit, lease.wrapper
    if visit is None or not visit.is_open:
        return
    try:
        if visit.is_used and wrapper.connection is not None:
            lease.drop()
    finally:
        if visit.connection is not None:
            wrapper.connection = visit.connection
        lease.use = POOLED
        if visit.of_wrapper:
            _bring_back(lease, visit)
            lease.visit = None
        visit.is_open = False
        visit.connection = None


def _bring_back(lease: Any, visit: Visit) -> None:
    for name, value in visit.of_wrapper.items():
        setattr(lease.wrapper, name, value)
    for name, value in visit.of_lease.items():
        setattr(lease, name, value)
