"""Recognises that Django is making a test database, which it connects to last of all."""

from __future__ import annotations

import sys

from django.core.management import call_command
from django.db.backends.base.creation import BaseDatabaseCreation

#: Frames between `create_test_db()` and this: Django's `ensure_connection()` and
#: `connect()`, a base's or a tool's, and what decorates them.
_BETWEEN = 32


def is_under_way() -> bool:
    """Return whether the calling thread is in Django's `create_test_db()`.

    It leaves the thread connected.  Here that would keep a connection from all other
    threads of the tests until this one's next query.  What connects in a command that it
    calls, such as a receiver of `pre_migrate`, does so for itself.
    """
    frame = sys._getframe(1)
    for _ in range(_BETWEEN):
        if frame.f_code is BaseDatabaseCreation.create_test_db.__code__:
            return True
        if frame.f_back is None or frame.f_code is call_command.__code__:
            return False
        frame = frame.f_back
    return False
