"""Gives back the connections of threads that ended without doing so.

And those that a thread has lost because an exception was thrown into it between two
steps.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from . import greenlets, registry
from .locks import locked

logger = logging.getLogger("django_pg_real_pool")

#: Seconds between two looks at which threads are alive.
INTERVAL = 0.5

#: What is to be done soon, on the reaper's thread.  SimpleQueue, because putting
#: something there must be safe in a finaliser.
_tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()


class _Starter:
    """Starts the one thread, whoever needs it first."""

    def __init__(self) -> None:
        #: See `locked`.  Only within is `thread` written.
        self._lock, self._holder = threading.RLock(), 0
        self.thread: threading.Thread | None = None

    def is_running(self) -> bool:
        thread = self.thread
        return thread is not None and thread.is_alive()

    @locked
    def start(self) -> None:
        if not self.is_running():
            thread = self.thread = threading.Thread(
                target=_run, name="django-pg-real-pool-reaper", daemon=True
            )
            thread.start()


_starter = _Starter()


def start() -> None:
    """Start the reaper's thread if it is not running."""
    if not _starter.is_running():
        _starter.start()


def run_soon(task: Callable[[], None]) -> None:
    """Run `task` on the reaper's thread; may be called by a finaliser."""
    _tasks.put(task)


def forget() -> Any:
    """In a forked child: the parent's thread is not here.

    Returns what must not be collected as long as the child lives.
    """
    global _starter, _tasks
    tasks = _tasks
    _starter, _tasks = _Starter(), SimpleQueue()
    return tasks


def _run() -> None:
    tasks = _tasks
    next_look = time.monotonic() + INTERVAL
    while tasks is _tasks:
        _run_task(tasks, next_look - time.monotonic())
        if time.monotonic() >= next_look:
            reap()
            next_look = time.monotonic() + INTERVAL
    greenlets.park()


def _run_task(tasks: SimpleQueue[Callable[[], None]], timeout: float) -> None:
    try:
        task = tasks.get(timeout=max(0.0, timeout))
    except Empty:
        return
    if tasks is _tasks:
        _survive(task)


def _survive(task: Callable[[], None]) -> None:
    try:
        task()
    except Exception:
        logger.exception("could not give back a connection")


def reap() -> None:
    """Give back what leases of ended threads hold, and what nobody holds."""
    for each in [*registry.leases(), *registry.pools()]:
        _survive(each.reap)
