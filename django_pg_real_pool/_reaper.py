"""Gives back the connections of threads that ended without doing so.

And those that a thread lost without ending, because an exception was thrown into it at
a moment when nothing could be done about it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from . import _registry

if TYPE_CHECKING:
    from ._checkin import Checkin
    from ._checkout import Checkout

logger = logging.getLogger("django_pg_real_pool")

#: Seconds between two looks at which threads are alive.
INTERVAL = 0.5

#: What is to be done soon, on the reaper's thread.  SimpleQueue, because putting
#: something there must be safe in a finaliser.
_tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()
_lock = threading.Lock()
_thread: threading.Thread | None = None
#: Leases that had no hold at the last look, told apart by when they began.
_lost: WeakKeyDictionary[Any, float] = WeakKeyDictionary()


def start() -> None:
    """Start the reaper's thread if it is not running."""
    global _thread
    if _thread is not None and _thread.is_alive():
        return
    with _lock:
        if _thread is None or not _thread.is_alive():
            _thread = threading.Thread(
                target=_run, name="django-pg-real-pool-reaper", daemon=True
            )
            _thread.start()


def adopt(wrapper: Checkin) -> None:
    """Take a wrapper that is being collected, to give back what it holds."""
    run_soon(lambda: _give_back(wrapper, "was dropped with a connection"))


def run_soon(task: Callable[[], None]) -> None:
    """Run `task` on the reaper's thread; may be called by a finaliser."""
    _tasks.put(task)


def forget() -> Any:
    """In a forked child: the parent's thread is not here.

    Returns what must not be collected as long as the child lives.
    """
    global _lock, _thread, _tasks
    tasks = _tasks
    _lock = threading.Lock()
    _tasks = SimpleQueue()
    _thread = None
    _lost.clear()
    return tasks


def _run() -> None:
    next_look = time.monotonic() + INTERVAL
    while True:
        _run_task(next_look - time.monotonic())
        if time.monotonic() >= next_look:
            _survive(reap)
            next_look = time.monotonic() + INTERVAL


def _run_task(timeout: float) -> None:
    try:
        task = _tasks.get(timeout=max(0.0, timeout))
    except Empty:
        return
    _survive(task)


def _survive(task: Callable[[], None]) -> None:
    try:
        task()
    except Exception:
        logger.exception("could not give back a connection")


def reap() -> None:
    """Give back what wrappers of ended threads hold, and what nobody holds."""
    for wrapper in _registry.wrappers():
        if wrapper.connection is None or not wrapper._releasing:
            continue
        owner = wrapper._owner
        if owner.is_alive() or wrapper.allow_thread_sharing:
            _look_for_loss(wrapper)
        elif owner is not threading.main_thread():  # after which the process ends
            _give_back(wrapper, f"belongs to thread {owner.name!r}, which has ended")


def _give_back(wrapper: Checkin, why: str) -> None:
    # Where the lock is taken, a thread that shares the wrapper is at work.
    if not wrapper._lease_lock.acquire(timeout=INTERVAL):
        return
    try:
        if wrapper.connection is None:
            return
        logger.warning(
            "a wrapper of database alias %r %s: its connection (%s) is given back",
            wrapper.alias,
            why,
            ", ".join(wrapper._describe_holds()) or "no hold",
        )
        # Nobody knows what it was in the middle of, or whether the server answers: it is
        # replaced, because a polite end could take this thread's time, for ever.
        try:
            wrapper._hooks.pool.physical(wrapper.connection).close()
            wrapper._is_dirty = True  # a closed connection can't be cleaned
            wrapper._close_lease()
        finally:
            wrapper._reset_transaction_state()
            wrapper._end_session()
    finally:
        wrapper._lease_lock.release()


def _look_for_loss(wrapper: Checkout) -> None:
    """End a lease without a hold, seen twice: its thread was interrupted at the end."""
    since = wrapper._lease.since
    if not _is_lost(wrapper):
        _lost.pop(wrapper, None)
    elif _lost.get(wrapper) != since:
        _lost[wrapper] = since
    elif wrapper._lease_lock.acquire(blocking=False):
        try:
            if wrapper._lease.since == since and _is_lost(wrapper):
                wrapper._settle()
        finally:
            wrapper._lease_lock.release()


def _is_lost(wrapper: Checkout) -> bool:
    return (
        wrapper.connection is not None
        and not wrapper._setting_up
        and (not wrapper._lease.holds or bool(wrapper._closed_elsewhere))
    )
