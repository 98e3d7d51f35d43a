"""Django database backends that release pooled connections as soon as possible."""

from ._api import (
    ConnectionHeldError,
    assert_released,
    pin_connection,
    pool_status,
    reset_peaks,
)
from ._backend.cursor import AutoConnectionReleaseCursor
from ._backend.factory import make_release_backend
from ._backend.wrapper import ConnectionReleaseMixin
from ._lease.statements import SessionStateError
from ._lease.status import LeaseStatus, PoolStatus
from ._pools import Census

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
    "reset_peaks",
]
