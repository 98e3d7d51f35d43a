"""The names of Django that this library relies on although they are not public.

They have been stable for many versions, and a test fails for each that moves.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.utils.asyncio import async_unsafe

#: Methods of `BaseDatabaseWrapper`.
WRAPPER_METHODS = (
    *("_close", "_commit", "_cursor", "_prepare_cursor", "_rollback", "_savepoint"),
    *("_savepoint_commit", "_savepoint_rollback", "_set_autocommit"),
)
#: Attributes of its instances.
WRAPPER_ATTRIBUTES = ("_thread_ident", "_thread_sharing_count")
#: Methods of `CursorWrapper`.
CURSOR_METHODS = ("_execute_with_wrappers",)
#: Attributes of PostgreSQL's wrapper, which its pool is made with and configured by.
POSTGRESQL_ATTRIBUTES = ("_connection_pools", "_configure_connection")

#: Something that Django's decorator was applied to.
_DECORATED: Any = async_unsafe(lambda: None)


@lru_cache(maxsize=32)
def is_decorated_by_django(method: Any) -> bool:
    """Return whether a decorated method of a wrapper class is as Django made it.

    A replacement may copy its name and module, but not the code that Django's decorator
    gives to all that it decorates.
    """
    return (
        str(getattr(method, "__module__", "")).startswith("django.db.backends.")
        and getattr(method, "__code__", None) is _DECORATED.__code__
    )


def is_as_written(owner: type, name: str) -> bool:
    """Return whether a method is that of the class's own source, and not a replacement."""
    function, module = vars(owner).get(name), sys.modules[owner.__module__]
    function = getattr(function, "fget", function)  # of a property
    return (
        isinstance(function, FunctionType)
        and function.__code__.co_filename == module.__file__
    )


def as_written(owner: type, name: str) -> Any:
    """Return a method of a class; if it was replaced, an object that equals no method."""
    return vars(owner)[name] if is_as_written(owner, name) else object()


#: Django's own cache of the settings that were read since they last changed.  Looking
#: there takes a tenth of the time of asking Django.
SETTINGS_READ: dict[str, Any] = vars(settings)
#: How a wrapper tells whether its queries are logged.
DJANGOS_QUERIES_LOGGED = as_written(BaseDatabaseWrapper, "queries_logged")
#: Django's loop over execute wrappers.
DJANGOS_LOOP = as_written(CursorWrapper, "_execute_with_wrappers")
#: How Django's cursors find what the driver's cursor has, and translate its errors.
DJANGOS_GETATTR = as_written(CursorWrapper, "__getattr__")


def undecorated(method: Any) -> tuple[Any, Any]:
    """Return a method of a wrapper class, and the same without `async_unsafe`.

    That finds out by an exception whether an event loop runs, which costs as much as the
    pool does.  If the method is not Django's, or has no decorator: an object that equals no
    method, and None.
    """
    return (
        (method, method.__wrapped__) if is_decorated_by_django(method) else (object(), None)
    )


if TYPE_CHECKING:

    class Wrapper(BaseDatabaseWrapper):
        """What a type checker must know of Django's wrapper."""

        _thread_ident: int
        _thread_sharing_count: int
        _connection_pools: dict[str, Any]
        health_check_done: bool

        def _close(self) -> None: ...
        def _commit(self) -> None: ...
        def _configure_connection(self, connection: Any) -> bool: ...
        def _cursor(self, name: str | None = None) -> Any: ...
        def _prepare_cursor(self, cursor: Any) -> Any: ...
        def _rollback(self) -> None: ...
        def _savepoint(self, sid: str) -> None: ...
        def _savepoint_commit(self, sid: str) -> None: ...
        def _savepoint_rollback(self, sid: str) -> None: ...
        def _set_autocommit(self, autocommit: bool) -> None: ...

    class MixedWrapper(Wrapper):
        """What a type checker must know of a made wrapper, seen from its lower layer."""

        _hooks: Any
        _lease: Any

        def _connect_early(self) -> bool: ...
        def _logs_queries(self) -> bool: ...
        def _note_closed_in_block(self) -> None: ...

    class Cursor(CursorWrapper):
        """What a type checker must know of a cursor."""

        db: Any

        def _execute_with_wrappers(
            self, sql: Any, params: Any, many: bool, executor: Any
        ) -> Any: ...
