"""What a wrapper knows of its lease, and of its session from first use to close()."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import RLock, Thread, current_thread
from typing import TYPE_CHECKING, Any, ClassVar

from django.db.backends.utils import debug_transaction

from . import _registry
from ._django import DJANGOS_QUERIES_LOGGED, SETTINGS_READ
from ._hooks import Hooks
from ._lease import Finder, Hold, Lease
from ._settings import ReleaseOptions

if TYPE_CHECKING:
    from ._django import Wrapper as _Base
else:
    _Base = object

#: The wrapper's view of its transaction: what stock's connect() resets, and the rest.
TRANSACTION_STATE: dict[str, Callable[[], Any]] = {
    "in_atomic_block": bool,
    "savepoint_ids": list,
    "atomic_blocks": list,
    "needs_rollback": bool,
    "rollback_exc": type(None),
    "commit_on_exit": lambda: True,
    "run_on_commit": list,
    "run_commit_hooks_on_set_autocommit_on": bool,
    "_unsent_savepoints": list,
}


class LeaseState(_Base):
    """The state that all layers of a made class share."""

    _hooks: ClassVar[Hooks]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._init_lease()
        super().__init__(*args, **kwargs)
        _registry.add(self)  # type: ignore[arg-type]  # all are, in the end

    def __copy__(self) -> Any:
        """Return a wrapper that has no lease, and is in no block of this one's.

        With the lease shared, the end of the copy would be the end of the lease.
        """
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        copied._init_lease()
        if self._releasing is False:  # as stock: they share the connection
            copied._releasing = False
        else:
            copied.connection = None
            copied._was_cut_off = self._hooks.close
            copied._reset_transaction_state()
        _registry.add(copied)  # type: ignore[arg-type]
        return copied

    def _init_lease(self) -> None:
        #: Why this wrapper has a connection now.
        self._lease = Lease()
        #: Guards the lease where threads share the wrapper; reentrant because setting
        #: a connection up may run queries.
        self._lease_lock = RLock()
        #: What stock means by "connected", which outlives leases here: None before the
        #: first use and after close(), then True; False for an alias without a pool.
        self._releasing: bool | None = None
        self._options = ReleaseOptions()
        #: Whether to note where cursors are opened.
        self._records_origins = False
        #: Above 0 while a connection that has no hold yet must stay.
        self._setting_up = 0
        #: Whether connection_created was sent since close().
        self._announced = False
        #: True on the way through Django's ensure_connection() to our connect().
        self._checking_out = False
        #: True while the base's close() runs to end a lease and not a session.
        self._ending_lease = False
        #: Whether the pool has the connection again, though `connection` is it still.
        self._is_given_back = False
        #: In a forked child, and a copy: whether the base has yet to hear that the lease
        #: it knows of is lost.
        self._was_cut_off = False
        #: Whether somebody may have changed the session during this lease.
        self._is_dirty = False
        #: Whether they changed what no reset brings back.
        self._is_beyond_reset = False
        #: Savepoints of open blocks that wait for a connection, each with the execute
        #: wrappers of its moment.  Empty while there is a lease.
        self._unsent_savepoints: list[tuple[str, list[Any]]] = []
        #: Whether an atomic block switched autocommit off, not the user.
        self._autocommit_off_by_atomic = False
        #: Cursors that were closed where nothing may be released at once.
        self._closed_elsewhere: list[tuple[Hashable, Finder | None]] = []
        #: The names of the open cursors that have a portal on the server.
        self._portals: dict[Hashable, str] = {}
        #: The driver's own connection, where a pool that gives out a proxy has told it.
        self._physical: Any = None
        #: Where the connection is as well, so that it is not collected with the wrapper.
        self._keeper: list[Any] = _registry.keeper()
        #: For NativePool: the pool used last, and what stands for it meanwhile.
        self._open_pool: Any = None
        #: What spares nearly all queries the long way to the pool and back; or None.
        self._shortcut: Any = None
        self._pool_stand_in: Any = None
        #: The thread that the wrapper belongs to.  Not the one that used it first: while
        #: wrappers are shared, that may be another, and end long before its owner.
        self._owner: Thread = current_thread()

    def _end_session(self) -> None:
        """Forget what outlives a lease; what comes next begins anew."""
        self._unsent_savepoints.clear()
        self._announced = False
        self._open_pool = self._shortcut = None
        self._releasing = None

    @property
    def _default_autocommit(self) -> bool:
        return bool(self.settings_dict["AUTOCOMMIT"])

    def _describe_holds(self) -> list[str]:
        """Return the holds in words, as they are now; of any thread's wrapper."""
        holds, connection = self._lease.describe(), self.connection
        if (
            connection is not None
            and Hold.TRANSACTION not in self._lease.holds
            and self._hooks.driver.in_transaction(connection, self.autocommit)
        ):
            holds.append(Hold.TRANSACTION.value)  # noted when its cursor is closed
        return holds

    def _logs_queries(self) -> bool:
        """Return `queries_logged`, sooner where it is False: a block asks twice."""
        if (
            SETTINGS_READ.get("DEBUG") is False
            and not self.force_debug_cursor
            and type(self).queries_logged is DJANGOS_QUERIES_LOGGED
        ):
            return False
        return self.queries_logged

    def _log_unsent(self, sql: str) -> None:
        """Log what stock logs, though there is nothing to be sent, or not yet."""
        if self._logs_queries():
            with debug_transaction(self, sql):
                pass

    def _reset_transaction_state(self) -> None:
        for name, initial in TRANSACTION_STATE.items():
            setattr(self, name, initial())
