"""Django database backends that release pooled connections as soon as possible."""

from ._api import ConnectionHeldError, assert_released, pin_connection, pool_status
from ._cursor import AutoConnectionReleaseCursor
from ._factory import make_release_backend
from ._holding import SessionStateError
from ._pools import Census
from ._status import LeaseStatus, PoolStatus
from ._wrapper import ConnectionReleaseMixin

__all__ = [
    "AutoConnectionReleaseCursor",
    "Census",
    "ConnectionHeldError",
    "ConnectionReleaseMixin",
    "LeaseStatus",
    "PoolStatus",
    "SessionStateError",
    "assert_released",
    "make_release_backend",
    "pin_connection",
    "pool_status",
]
