"""Test databases whose making leaves no connection checked out."""

from __future__ import annotations

from functools import cache
from typing import Any


class _Releasing:
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


@cache
def creation_class_for(creation_class: Any) -> Any:
    """Return the releasing subclass of a class that makes test databases."""
    if issubclass(creation_class, _Releasing):
        return creation_class
    return type(
        creation_class.__name__,
        (_Releasing, creation_class),
        {"__module__": creation_class.__module__},
    )
