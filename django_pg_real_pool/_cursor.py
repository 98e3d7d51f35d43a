"""Cursors that end their hold when they are closed.

They are ordinary Django cursors: subclasses of whatever the base backend makes, built
the same way, so that tools which rebuild one as `type(cursor)(cursor.cursor, db)` get
one that releases too.  What holds the lease is the driver's cursor inside, because
that is what all such copies have in common.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db.backends.utils import CursorWrapper

    _Base = CursorWrapper
else:
    _Base = object


class AutoConnectionReleaseCursor(_Base):
    """The mixin that makes a Django cursor end its hold when it is closed.

    Unlike the cursor class beneath it, which only closes the driver's cursor, it then
    tells the wrapper, which gives the connection back if nothing else holds it.  A
    cursor whose lease has ended already changes nothing.
    """

    def close(self) -> None:
        """Close the cursor; on return its hold has ended, whatever was raised."""
        try:
            self._close_cursor()
        finally:
            self.db._cursor_closed(self.cursor)

    def _close_cursor(self) -> None:
        self.cursor.close()


class _ClosesThroughBase(AutoConnectionReleaseCursor):
    """For a base cursor class that has a `close()` of its own; Django's have none."""

    def _close_cursor(self) -> None:
        super(AutoConnectionReleaseCursor, self).close()


@lru_cache(maxsize=None)
def releasing_class(cursor_class: type[Any]) -> type[Any]:
    """Return the releasing subclass of a Django cursor class: one for each, for good."""
    mixin = (
        _ClosesThroughBase
        if hasattr(cursor_class, "close")
        else AutoConnectionReleaseCursor
    )
    return type(
        cursor_class.__name__,
        (mixin, cursor_class),
        {
            "__module__": cursor_class.__module__,
            "__qualname__": cursor_class.__qualname__,
            "__doc__": cursor_class.__doc__,
        },
    )
