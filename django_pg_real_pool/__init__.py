"""Django database backends that release pooled connections as soon as possible."""

from ._api import ConnectionHeldError, assert_released, pin_connection
from ._cursor import AutoConnectionReleaseCursor
from ._factory import make_release_backend
from ._wrapper import ConnectionReleaseMixin

__all__ = [
    "AutoConnectionReleaseCursor",
    "ConnectionHeldError",
    "ConnectionReleaseMixin",
    "assert_released",
    "make_release_backend",
    "pin_connection",
]
