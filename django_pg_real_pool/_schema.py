"""Schema editors that keep their connection from their first statement to their last."""

from __future__ import annotations

from functools import cache
from typing import Any


class _Pinned:
    """Pins the connection for the editor's `with` block.

    An editor quotes values by the connection itself (`connection.connection`), also
    before its first statement; stock has one by then.
    """

    connection: Any

    def __enter__(self) -> Any:
        self.connection._pin(self, trusted=True)
        try:
            return super().__enter__()  # type: ignore[misc]
        except BaseException:
            self.connection._unpin(self)
            raise

    def __exit__(self, *exc_info: object) -> Any:
        try:
            return super().__exit__(*exc_info)  # type: ignore[misc]
        finally:
            self.connection._unpin(self)


@cache
def schema_editor_class_for(editor_class: Any) -> Any:
    """Return the pinning subclass of a schema editor class."""
    if issubclass(editor_class, _Pinned):
        return editor_class
    return type(
        editor_class.__name__,
        (_Pinned, editor_class),
        {"__module__": editor_class.__module__},
    )
