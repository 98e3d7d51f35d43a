"""The names of Django that this library relies on although they are not public.

They have been stable for many versions, and a test fails for each that moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper

#: Methods of `BaseDatabaseWrapper`.
WRAPPER_METHODS = (
    *("_close", "_commit", "_cursor", "_prepare_cursor", "_rollback", "_savepoint"),
    *("_savepoint_commit", "_savepoint_rollback", "_set_autocommit"),
)
#: Attributes of its instances.
WRAPPER_ATTRIBUTES = ("_thread_ident",)
#: Methods of `CursorWrapper`.
CURSOR_METHODS = ("_execute", "_executemany")
#: Attributes of PostgreSQL's wrapper, which its pool is made with and configured by.
POSTGRESQL_ATTRIBUTES = ("_connection_pools", "_configure_connection")

if TYPE_CHECKING:
    from django.db.backends.utils import CursorWrapper

    class Wrapper(BaseDatabaseWrapper):
        """What a type checker is to know of a wrapper."""

        _thread_ident: int
        _connection_pools: dict[str, Any]

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

    class Cursor(CursorWrapper):
        """What a type checker is to know of a cursor."""

        db: Any

        def _execute(self, sql: Any, params: Any, *ignored: Any) -> Any: ...
        def _executemany(self, sql: Any, param_list: Any, *ignored: Any) -> Any: ...
