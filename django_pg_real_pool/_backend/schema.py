"""Schema editors that keep their connection from their first statement to their last."""

from __future__ import annotations

from typing import Any


class PinnedSchemaEditor:
    """Pins the connection for the editor's `with` block.

    An editor quotes values by the connection itself (`connection.connection`), also
    before its first statement; stock has one by then.
    """

    connection: Any

    def __enter__(self) -> Any:
        self.connection._lease.pin(self, is_own=True)
        try:
            return super().__enter__()  # type: ignore[misc]
        except BaseException:
            self.connection._lease.unpin(self)
            raise

    def __exit__(self, *exc_info: object) -> Any:
        try:
            return super().__exit__(*exc_info)  # type: ignore[misc]
        finally:
            self.connection._lease.unpin(self)
