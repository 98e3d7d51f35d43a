"""How a critical section survives an exception that is thrown into its thread.

A signal handler or a time limit can raise between any two bytecodes.  `with lock:` is not
safe then: from Python 3.14 on, the exception may come after the lock's `__enter__` and
before the body, and nobody releases the lock.

So the lock is acquired within `try`, and whatever is raised, it is released if this thread
has it.  An RLock knows that: its `release()` refuses for all others.  What an RLock can't
tell is whether an outer frame of the same thread has it, which then must keep it.  For
that, `_holder` names the thread that is inside.  Each thread writes only its own identity
there, or 0, and only within the lock.  So a thread that reads its own identity is inside,
without the GIL too, whatever others write meanwhile.

Where the method itself raises, the exception from outside may hit the handler of that one.
So there are two handlers, one around the other.
"""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def locked(method: F, blocking: bool = True) -> F:
    """Run a method as one critical section of its object.

    The object has the attributes `_lock`, an RLock, and `_holder`: the identity of the
    thread within, or 0.  Only this decorator writes the latter.  A method may call
    another, and a signal handler may call one in the middle of another.

    If not `blocking`, the method is not run where another thread is within.
    """

    @wraps(method)
    def run(self: Any, *args: Any) -> Any:
        me = get_ident()
        if self._holder == me:  # an outer frame has the lock, and will release it
            return method(self, *args)
        lock, is_over = self._lock, False
        try:
            try:
                if not lock.acquire(blocking):
                    return None
                self._holder = me
                result = method(self, *args)
                self._holder = 0
                lock.release()
            except BaseException:
                # No call comes before release(), not even that of suppress(): it is in
                # calls that Python looks for signals.
                if self._holder == me:
                    self._holder = 0
                try:  # noqa: SIM105
                    lock.release()
                except RuntimeError:  # this thread does not have it
                    pass
                is_over = True
                raise
        except BaseException:
            if not is_over:
                if self._holder == me:
                    self._holder = 0
                try:  # noqa: SIM105
                    lock.release()
                except RuntimeError:
                    pass
            raise
        return result

    return cast(F, run)


def with_undo(do: Callable[[], T], undo: Callable[[], None]) -> T:
    """Return what `do` returns; `undo` is done by then, also if something is raised.

    It may be done twice, since the first time may be interrupted.  A context manager would
    not do: one can be interrupted before the first line of its `__exit__`.
    """
    try:
        try:
            return do()
        finally:
            undo()
    except BaseException:
        undo()
        raise


def try_locked(self: Any, method: Callable[..., Any], *args: Any) -> Any:
    """Do `method(*args)` as a critical section of `self`, or nothing if it is occupied."""
    if self._holder:
        return None

    def run(self: Any) -> Any:
        return method(*args)

    return locked(run, blocking=False)(self)
