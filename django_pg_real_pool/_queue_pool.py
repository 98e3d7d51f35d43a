"""django-db-connection-pool: SQLAlchemy's QueuePool, found by alias."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from . import _registry
from ._pools import Census, Pool

if TYPE_CHECKING:
    from ._state import LeaseState


def _container() -> Any:
    from dj_db_conn_pool.core import pool_container

    return pool_container


class QueuePool(Pool):
    """For a base that is one of django-db-connection-pool's wrappers."""

    def exhausted(self) -> tuple[type[BaseException], ...]:
        from sqlalchemy.exc import TimeoutError

        return (TimeoutError,)

    def checkout(self, wrapper: LeaseState) -> Any:
        if _container().has(wrapper.alias):
            return super().checkout(wrapper)
        # The pool is made on the way.  It is to do without a ping at each checkout,
        # which is on by default (see CHECK_AFTER_IDLE).
        settings = wrapper.settings_dict
        options = {**settings.get("POOL_OPTIONS", {}), "PRE_PING": False}
        wrapper.settings_dict = {**settings, "POOL_OPTIONS": options}
        try:
            return super().checkout(wrapper)
        finally:
            wrapper.settings_dict = settings

    def discard(self, wrapper: LeaseState) -> None:
        wrapper.connection.invalidate()

    def physical(self, connection: Any) -> Any:
        # The pool wraps the driver's connection in a new proxy at every checkout.
        return connection.driver_connection

    def census(self, wrapper: LeaseState) -> Census:
        if not _container().has(wrapper.alias):
            return Census()
        pool = _container().get(wrapper.alias)
        idle, in_use = pool.checkedin(), pool.checkedout()
        return Census(None, idle + in_use, idle, in_use, None)

    def abandon(self) -> Any:
        container = _container()
        pools = dict(container)
        container.clear()
        # Another thread of the parent may have held it.
        type(container).lock = Lock()
        for wrapper in _registry.wrappers():
            # At the child's end the proxies of SQLAlchemy would roll back.
            finalizer = getattr(wrapper.connection, "_finalizer", None)
            if finalizer is not None:
                finalizer.detach()
        return pools
