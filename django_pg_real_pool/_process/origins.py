"""Where in the user's code something began, or a thread is now."""

from __future__ import annotations

import sys
from types import FrameType

from django.db.backends.base.base import BaseDatabaseWrapper

#: Packages whose frames are passed over on the way to the user's code.
_PASSED_OVER = frozenset(
    {
        *("django", "django_pg_real_pool", "asgiref", "contextlib", "threading", "queue"),
        *("psycopg", "psycopg_pool", "sqlalchemy", "dj_db_conn_pool", "concurrent"),
        *("gevent", "eventlet", "selectors"),
    }
)


def find_origin() -> str:
    """Return the user's code that is being run by the calling thread."""
    return describe_frame(sys._getframe(1))


def _is_passed_over(frame: FrameType) -> bool:
    return (
        frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER
        # A method of the base, whoever wrote it: not the code that wanted the cursor.
        or isinstance(frame.f_locals.get("self"), BaseDatabaseWrapper)
    )


def describe_frame(frame: FrameType) -> str:
    """Return "file:line in function" of the innermost frame of the user's code."""
    innermost = frame
    while _is_passed_over(frame):
        if frame.f_back is None:
            frame = innermost  # nothing else is on this stack
            break
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
