"""Test databases whose making leaves no connection checked out."""

from __future__ import annotations

from typing import Any


class ReleasingCreation:
    """Gives back the connection that Django opens last of all.

    Stock's is the thread's own, whether it is open or not; here it would be kept from
    all other threads of the tests until this one's next query.
    """

    connection: Any

    def create_test_db(self, *args: Any, **kwargs: Any) -> Any:
        name = super().create_test_db(*args, **kwargs)  # type: ignore[misc]
        if self.connection._releasing:
            self.connection.close()
        return name
