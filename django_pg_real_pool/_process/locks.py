"""How a critical section survives an exception that is thrown into its thread.

A signal handler or a time limit can raise between any two bytecodes.  `with lock:` is not
safe then: from Python 3.14 on, the exception may come after the lock's `__enter__` and
before the body, and nobody releases the lock.

So the lock is acquired within `try`, and whatever is raised, it is released if this thread
has it.  An RLock knows that: its `release()` refuses for all others.  What an RLock can't
tell is whether an outer frame of the same thread has it, which then must keep it.  For
that, `_holder` has the thread that is inside.
"""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def locked(method: F) -> F:
    """Run a method as one critical section of its object.

    The object has the attributes `_lock`, an RLock, and `_holder`: the identity of the
    thread within, or 0.  Only this decorator writes the latter.  A method may call
    another, and a signal handler may call one in the middle of another.
    """

    @wraps(method)
    def run_with_one(self: Any, argument: Any) -> Any:
        # The same without *args, which are slow: each query does this four times.
        me = get_ident()
        if self._holder == me:
            return method(self, argument)
        lock = self._lock
        try:
            lock.acquire()
            self._holder = me
            result = method(self, argument)
            self._holder = 0
            lock.release()
        except BaseException:
            if self._holder == me:
                self._holder = 0
            with suppress(RuntimeError):
                lock.release()
            raise
        return result

    @wraps(method)
    def run(self: Any, *args: Any) -> Any:
        me = get_ident()
        if self._holder == me:  # an outer frame has the lock, and will release it
            return method(self, *args)
        lock = self._lock
        try:
            lock.acquire()
            self._holder = me
            result = method(self, *args)
            self._holder = 0
            lock.release()
        except BaseException:
            if self._holder == me:
                self._holder = 0
            with suppress(RuntimeError):  # this thread does not have it
                lock.release()
            raise
        return result

    has_one = method.__code__.co_argcount == 2 and not method.__defaults__
    return cast(F, run_with_one if has_one else run)


def try_locked(self: Any, method: Callable[..., Any], *args: Any) -> Any:
    """Do `method(*args)` as a critical section of `self`, or nothing if it is occupied."""
    if not self._lock.acquire(blocking=False):
        return None
    try:
        self._holder = get_ident()
        return method(*args)
    finally:
        self._holder = 0
        self._lock.release()
