"""Greenlets that stand for threads, as gevent and eventlet make them by patching Python.

Neither is imported here.  A greenlet stands for a thread where `get_ident()`, which they
patch, returns the greenlet's identity.
"""

from __future__ import annotations

import _thread
import sys
import threading
from _thread import get_ident  # as it was when this library was imported
from types import FrameType
from typing import Any
from weakref import ref

from django.core.exceptions import ImproperlyConfigured
from django.db import connections


class Green:
    """What is asked of a lease's thread, answered by the greenlet that stands for it.

    The thread itself can't answer: `threading` makes one up, which is alive for ever.
    """

    def __init__(self, greenlet: Any) -> None:
        self._find = ref(greenlet)
        thread = threading.current_thread()
        is_made_up = thread.name.startswith("Dummy-")
        #: gevent's name of the greenlet, unless the user has named a thread.
        self.name = getattr(greenlet, "name", thread.name) if is_made_up else thread.name

    def is_alive(self) -> bool:
        greenlet = self._find()
        return greenlet is not None and not greenlet.dead

    def frame(self) -> FrameType | None:
        """Return where the greenlet is now; None if it has ended, or runs elsewhere."""
        greenlet = self._find()
        if greenlet is not None and greenlet is _running():
            return sys._getframe()
        return getattr(greenlet, "gr_frame", None)


def _running() -> Any:
    module = sys.modules.get("greenlet")
    return None if module is None else module.getcurrent()


def current() -> threading.Thread | Green:
    """Return who calls this: a thread, or the greenlet that stands for one."""
    greenlet = _running()
    if greenlet is not None and _thread.get_ident() == id(greenlet):
        return Green(greenlet)
    return threading.current_thread()


def park() -> None:
    """Wait for ever, as a greenlet in a forked child that is a copy of the parent's.

    A fork copies all greenlets, unlike threads.  If one that `threading` has started ended
    there, it would not be found among the threads, and that would be reported.
    """
    lock = _thread.allocate_lock()
    while lock.acquire():
        pass


#: What is wrong where `was_patched_late()`, and what to do.
LATE = (
    "Python was patched, by gevent or eventlet, after Django or django_pg_real_pool was "
    "imported, so these take all greenlets for one thread."
)
REMEDY = (
    "Patch before Django is imported: at the top of manage.py or of a worker's module; "
    "for gunicorn's --preload, in gunicorn.conf.py."
)


def _came_after_django() -> bool:
    """Return whether Python was patched after Django made the place of its wrappers."""
    place = getattr(connections, "_connections", None)
    storage = getattr(place, "_storage", None)
    return storage is not None and not isinstance(storage, threading.local)


_DJANGO_WAS_EARLIER = _came_after_django()


def was_patched_late() -> bool:
    """Return whether Python was patched after Django or this library was imported."""
    return _thread.get_ident is not get_ident or _DJANGO_WAS_EARLIER


def refuse_if_late() -> None:
    """Raise ImproperlyConfigured if `was_patched_late()`: it would hang, or mix them up."""
    if was_patched_late():
        raise ImproperlyConfigured(f"{LATE} {REMEDY}")
