"""Cursors that end their hold when they are closed, and see what changes the session.

They are ordinary Django cursors: subclasses of whatever the base backend makes, built
the same way, so that tools which rebuild one as `type(cursor)(cursor.cursor, db)` get
one that releases too.  What holds the lease is the driver's cursor inside, because
that is what all such copies have in common.
"""

from __future__ import annotations

from _thread import get_ident
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.db.backends.utils import CursorWrapper

from .._lease.facts import Transaction, Use
from .._lease.rule import Hold
from .._session import changes_session, function_changes_session
from .names import DJANGOS_GETATTR, DJANGOS_LOOP

#: Looked up here once: it is needed for each query.
NONE, CURSOR = Transaction.NONE, Hold.CURSOR

if TYPE_CHECKING:
    from .names import Cursor as _Base
else:
    _Base = object

_CursorWrapper: Any = CursorWrapper  # its stubs lack what is not public


class AutoConnectionReleaseCursor(_Base):
    """The mixin that makes a Django cursor end its hold when it is closed.

    Unlike the cursor class beneath it, which only closes the driver's cursor, it then
    tells the lease, which gives the connection back if nothing else holds it.  A
    cursor whose lease has ended already changes nothing.
    """

    #: Whether a class beneath has a loop over execute wrappers that is not Django's.
    _has_own_loop = False

    # ##### Statements #####

    def _execute_with_wrappers(
        self, sql: Any, params: Any, many: bool, executor: Any
    ) -> Any:
        """Run a statement as Django does, having looked at what it does to the session.

        What is looked at is the text that the server gets, whatever execute wrappers
        made of it.  Django closes its cursor when this raises an Exception.  After
        anything else, such as a KeyboardInterrupt, it would be dropped unclosed, and hold
        its lease.
        """
        db, raw = self.db, self.cursor
        lease = db._lease
        try:
            if (
                db.execute_wrappers
                or self._has_own_loop
                or _CursorWrapper._execute_with_wrappers is not DJANGOS_LOOP
            ):
                depth = lease.wrapping
                try:
                    lease.wrapping = depth + 1
                    return super()._execute_with_wrappers(
                        sql, params, many, self._looking_first(executor)
                    )
                finally:
                    lease.wrapping = depth
            if (change := changes_session(sql, raw)) is not None:
                lease.session_changes(change, raw)
            if lease.transaction is NONE and (
                not db.autocommit
                or db._hooks.driver.has_run(raw)
                or len(lease.holds.now.get(CURSOR, ())) > 1
            ):
                lease.before_statement(raw)
            if lease.noting is not None:
                lease.note(sql, params, raw)
            lease.seen_by = get_ident()
            return executor(sql, params, many, {"connection": db, "cursor": self})
        except Exception:
            lease.seen_by = 0  # Django may have refused before it looked
            raise
        except BaseException:
            lease.seen_by = 0
            lease.cut_if_stuck()
            self.close()
            raise

    def _looking_first(self, executor: Any) -> Any:
        def execute(sql: Any, params: Any, *args: Any) -> Any:
            self._look_at(changes_session(sql, self.cursor), sql, params)
            self.db._lease.seen_by = get_ident()
            return executor(sql, params, *args)

        return execute

    def _look_at(self, change: str | None, sql: Any, params: Any = None) -> None:
        """Tell the lease what is about to be sent."""
        lease, raw = self.db._lease, self.cursor
        if change is not None:
            lease.session_changes(change, raw)
        if lease.transaction is NONE:
            lease.before_statement(raw)
        lease.note(sql, params, raw)

    def callproc(self, procname: Any, params: Any = None, kparams: Any = None) -> Any:
        self._look_at(function_changes_session(procname, self.cursor), procname, params)
        lease = self.db._lease
        try:
            lease.seen_by = get_ident()
            return super().callproc(procname, params, kparams)
        finally:
            lease.seen_by = 0

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        return self._sending("copy", statement)(statement, *args, **kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self._sending("stream", query)(query, *args, **kwargs)

    def _sending(self, method: str, statement: Any) -> Any:
        """Return a method that only some drivers have, having looked at `statement`."""
        # Django's wrapper of psycopg's cursor defines one of the two, in debug mode.
        found = getattr(super(), method, None) or getattr(self.cursor, method)
        self._look_at(changes_session(statement, self.cursor), statement)
        return found

    # ##### Closing #####

    def close(self) -> None:
        """Close the cursor; on return its hold has ended, whatever was raised."""
        raw, lease = self.cursor, self.db._lease
        try:
            if lease.portals:
                lease.end_portal_elsewhere(raw)
            raw.close()
        finally:
            lease.cursor_closed(raw)


class _ClosesThroughBase(AutoConnectionReleaseCursor):
    """For a base cursor class that has a `close()` of its own; Django's have none."""

    def close(self) -> None:
        raw, lease = self.cursor, self.db._lease
        try:
            if lease.portals:
                lease.end_portal_elsewhere(raw)
            super(AutoConnectionReleaseCursor, self).close()  # type: ignore[misc]
        finally:
            lease.cursor_closed(raw)


# Django finds these in the driver's cursor by `__getattr__`, and wraps them to translate
# errors, at each call; a query makes two.  One function for all three, given the name,
# would cost half of what this saves.


def _fetchone(self: Any, *args: Any, **kwargs: Any) -> Any:
    if "fetchone" in _of_django:
        return _of_django["fetchone"](self, *args, **kwargs)
    try:
        return self.cursor.fetchone(*args, **kwargs)
    except Exception:
        with self.db.wrap_database_errors:
            raise


def _fetchmany(self: Any, *args: Any, **kwargs: Any) -> Any:
    if "fetchmany" in _of_django:
        return _of_django["fetchmany"](self, *args, **kwargs)
    try:
        return self.cursor.fetchmany(*args, **kwargs)
    except Exception:
        with self.db.wrap_database_errors:
            raise


def _fetchall(self: Any, *args: Any, **kwargs: Any) -> Any:
    if "fetchall" in _of_django:
        return _of_django["fetchall"](self, *args, **kwargs)
    try:
        return self.cursor.fetchall(*args, **kwargs)
    except Exception:
        with self.db.wrap_database_errors:
            raise


#: Where a tool may have put such a method.
_of_django = vars(CursorWrapper)

_FETCHES = {"fetchone": _fetchone, "fetchmany": _fetchmany, "fetchall": _fetchall}


def hold_for(wrapper: Any, cursor: Any) -> Any:
    """Make a Django cursor hold the lease from here on, until it is closed."""
    if wrapper._lease.use is Use.POOLED:
        cursor.__class__ = releasing_class(cursor.__class__)
        wrapper._lease.cursor_opened(cursor.cursor)
    return cursor


@lru_cache(maxsize=256)
def releasing_class(cursor_class: type[Any]) -> type[Any]:
    """Return the releasing subclass of a Django cursor class: one for each, for good."""
    mixin = (
        _ClosesThroughBase
        if hasattr(cursor_class, "close")
        else AutoConnectionReleaseCursor
    )
    loop = getattr(cursor_class, "_execute_with_wrappers", None)
    finds = getattr(cursor_class, "__getattr__", None) is DJANGOS_GETATTR
    has_own = any(hasattr(cursor_class, name) for name in _FETCHES)
    return type(
        cursor_class.__name__,
        (mixin, cursor_class),
        {
            "__module__": cursor_class.__module__,
            "__qualname__": cursor_class.__qualname__,
            "__doc__": cursor_class.__doc__,
            "_has_own_loop": loop is not _CursorWrapper._execute_with_wrappers,
            **(_FETCHES if finds and not has_own else {}),
        },
    )
