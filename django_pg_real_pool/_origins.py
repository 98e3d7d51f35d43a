"""Where in the user's code something began."""

from __future__ import annotations

import sys

#: Packages whose frames are passed over on the way to the user's code.
_PASSED_OVER = ("django", "django_pg_real_pool", "contextlib", "threading")


def find_origin() -> str:
    """Return "file:line in function" of the innermost frame of the user's code."""
    frame = sys._getframe(1)
    while (
        frame.f_back is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER
    ):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
