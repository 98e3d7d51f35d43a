"""Cursors that end their hold when they are closed, and see what changes the session.

They are ordinary Django cursors: subclasses of whatever the base backend makes, built
the same way, so that tools which rebuild one as `type(cursor)(cursor.cursor, db)` get
one that releases too.  What holds the lease is the driver's cursor inside, because
that is what all such copies have in common.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from ._session import changes_session, function_changes_session

if TYPE_CHECKING:
    from ._django import Cursor as _Base
else:
    _Base = object


class AutoConnectionReleaseCursor(_Base):
    """The mixin that makes a Django cursor end its hold when it is closed.

    Unlike the cursor class beneath it, which only closes the driver's cursor, it then
    tells the wrapper, which gives the connection back if nothing else holds it.  A
    cursor whose lease has ended already changes nothing.
    """

    # ##### When a statement is interrupted #####

    # Django closes its cursor when execute() raises an Exception.  After anything else,
    # a KeyboardInterrupt or a time limit, it would be dropped, and hold its lease.

    def execute(self, sql: Any, params: Any = None) -> Any:
        try:
            return super().execute(sql, params)
        except Exception:
            raise
        except BaseException:
            self.close()
            raise

    def executemany(self, sql: Any, param_list: Any) -> Any:
        try:
            return super().executemany(sql, param_list)
        except Exception:
            raise
        except BaseException:
            self.close()
            raise

    # ##### Before a statement is sent: does it change the session? #####

    # Django's execute() and executemany() call these two last, so the text is what the
    # server gets, whatever execute wrappers made of it.

    def _execute(self, sql: Any, params: Any, *ignored: Any) -> Any:
        if (change := changes_session(sql, self.cursor)) is not None:
            self.db._session_changes(change, self.cursor)
        return super()._execute(sql, params, *ignored)

    def _executemany(self, sql: Any, param_list: Any, *ignored: Any) -> Any:
        if (change := changes_session(sql, self.cursor)) is not None:
            self.db._session_changes(change, self.cursor)
        return super()._executemany(sql, param_list, *ignored)

    def callproc(self, procname: Any, params: Any = None, kparams: Any = None) -> Any:
        if (change := function_changes_session(procname, self.cursor)) is not None:
            self.db._session_changes(change, self.cursor)
        return super().callproc(procname, params, kparams)

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        return self._sending("copy", statement)(statement, *args, **kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self._sending("stream", query)(query, *args, **kwargs)

    def _sending(self, method: str, statement: Any) -> Any:
        """Return a method that only some drivers have, having looked at `statement`."""
        # Django's wrapper of psycopg's cursor defines one of the two, in debug mode.
        found = getattr(super(), method, None) or getattr(self.cursor, method)
        if (change := changes_session(statement, self.cursor)) is not None:
            self.db._session_changes(change, self.cursor)
        return found

    # ##### Closing #####

    def close(self) -> None:
        """Close the cursor; on return its hold has ended, whatever was raised."""
        raw = self.cursor
        try:
            raw.close()
        finally:
            self.db._cursor_closed(raw)


class _ClosesThroughBase(AutoConnectionReleaseCursor):
    """For a base cursor class that has a `close()` of its own; Django's have none."""

    def close(self) -> None:
        raw = self.cursor
        try:
            super(AutoConnectionReleaseCursor, self).close()  # type: ignore[misc]
        finally:
            self.db._cursor_closed(raw)


@cache
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
