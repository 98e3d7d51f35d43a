"""Tells whether this thread is collecting garbage: nothing may be released there.

The collector runs at any moment, so perhaps under a pool's lock, and in any thread; what
it finds may be a generator, and to end one is to close the cursor that it reads from.
(Without the GIL, what another thread has dropped may be finalised by the thread that made
it, between any two bytecodes.  That is as when a signal handler closes the cursor.)

Python tells of a collection by a callback.  An exception that a signal handler or a time
limit throws while a callback runs is printed and gone, and with it the time limit.  So
this one is made of built-ins alone, where Python looks for neither: it gets an attribute
whose name is the phase, and to get that sets another.
"""

from __future__ import annotations

import atexit
import gc
from contextlib import suppress
from functools import partial
from operator import methodcaller
from threading import local


class _Collector(local):
    """Of each thread its own, and of a forked child its own."""

    #: Whether this thread collects now.
    is_at_work = False

    # What gc.callbacks calls the phases.
    start = property(methodcaller("__setattr__", "is_at_work", True))
    stop = property(methodcaller("__setattr__", "is_at_work", False))


here = _Collector()

# It is called with the phase and a dict, which is the default that getattr() never needs.
_callback = partial(getattr, here)
if hasattr(gc, "callbacks"):  # CPython
    gc.callbacks.append(_callback)


@atexit.register
def _forget() -> None:
    """Ask nothing of `here` at the end of the interpreter: gevent's local would refuse."""
    with suppress(AttributeError, ValueError):  # others may have removed it
        gc.callbacks.remove(_callback)
