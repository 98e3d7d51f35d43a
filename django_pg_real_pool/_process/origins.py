"""Where in the user's code something began, or a thread is now."""

from __future__ import annotations

import sys
from _thread import get_ident
from types import FrameType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

#: Packages whose frames are passed over on the way to the user's code.
_PASSED_OVER = frozenset(
    {
        *("django", "django_pg_real_pool", "asgiref", "contextlib", "threading", "queue"),
        *("psycopg", "psycopg_pool", "sqlalchemy", "dj_db_conn_pool", "concurrent"),
        *("gevent", "eventlet", "selectors", "asyncio", "debug_toolbar"),
    }
)


def find_origin() -> str:
    """Return the user's code that is being run by the calling thread."""
    return describe_frame(sys._getframe(1))


def frames() -> dict[int, FrameType]:
    """Return the innermost frame of each thread that can be looked at, by its identity.

    Without the GIL that is the caller's own.  The others run while they are looked at, and
    to read a running frame's variables can crash the interpreter.
    """
    if _has_gil():
        return sys._current_frames()
    return {get_ident(): sys._getframe(1)}


def _has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def _is_passed_over(frame: FrameType) -> bool:
    return (
        frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER
        # A method of the base, whoever wrote it: not the code that wanted the cursor.
        or isinstance(frame.f_locals.get("self"), BaseDatabaseWrapper)
    )


def describe_frame(frame: FrameType) -> str:
    """Return "file:line in function" of the innermost frame of the user's code.

    Another thread's frame may return while it is looked at; then it may have no caller.
    """
    innermost = frame
    while _is_passed_over(frame):
        caller = frame.f_back  # read once
        if caller is None or _serves_coroutine(frame):
            frame = innermost  # nothing else is on this stack
            break
        frame = caller
    return _describe(frame)


def describe_coroutine(coroutine: Any) -> str | None:
    """Return "file:line in function" where the user's code, in a coroutine, awaits."""
    found = None
    if not _has_gil():
        return None  # it may run now
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        if not _is_passed_over(frame):
            found = _describe(frame)
        coroutine = coroutine.cr_await
    return found


def _serves_coroutine(frame: FrameType) -> bool:
    """Return whether a coroutine awaits what this frame calls, whoever calls it."""
    return (
        frame.f_code.co_name == "thread_handler"
        and frame.f_globals.get("__name__") == "asgiref.sync"
    )


def _describe(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
