"""Reads a wrapper class, once, when the class is made: what does its base override?

What Django's own class does is known, so it runs where it is needed: once for each
physical connection, or not at all.  An override by anybody else is run as often as its
author expects: whenever a connection is taken or given back.  Unless the author of the
class says that it is about the physical connection: see `ONCE_PER_CONNECTION`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

from .._drivers import Driver, driver_for
from .._pools import Pool
from .._pools.native import DjangosPool, NativePool
from .._pools.queue import QueuePool
from .names import is_decorated_by_django, undecorated

#: Packages whose overrides are known: what they do lasts for a connection's life.
KNOWN = ("django", "dj_db_conn_pool")
OURS = __name__.partition(".")[0]

_ENSURE_CONNECTION, _ = undecorated(BaseDatabaseWrapper.ensure_connection)

#: Hooks whose overrides can be declared to be about the physical connection.
ONCE_PER_CONNECTION = (
    *("get_connection_params", "get_new_connection", "init_connection_state"),
)


@dataclass(frozen=True)
class Hooks:
    """What a wrapper class needs at a checkout and at a checkin."""

    #: There is a `connect()` or `close()` that is neither Django's nor ours: go
    #: through it.
    connect: bool
    close: bool
    #: A base's own `close_if_health_check_failed()` is called before each cursor.
    health_check: bool = field(repr=False)
    #: The base has a `_cursor()` of its own, beneath the upper layer.
    cursor: bool
    #: The base has an `ensure_connection()` of its own.
    ensure: bool = field(repr=False)
    #: A base's `init_connection_state()` must run at every checkout, because it may
    #: keep on the wrapper what it learns of the connection.
    init_every_time: bool
    #: Django's `create_cursor()`, and the same undecorated: see `undecorated()`.
    create_cursor: tuple[Any, Any] = field(repr=False)
    #: The base has a `_close()` that is neither Django's nor a known pool's.
    own_close: bool = field(repr=False)
    #: The base has a `close_pool()` that is not Django's.  Django's would make a pool only
    #: to close it, while another thread opens it.
    close_pool: bool = field(repr=False)
    #: The base's `commit()` is Django's own.
    plain_commit: bool = field(repr=False)
    #: The base's ordinary cursors are Django's own.
    plain_cursors: bool = field(repr=False)
    #: A subclass of the made class may make cursors that do not hold the lease yet.
    makes_cursors: bool = field(repr=False)
    #: What is only logged if it is raised while a connection is given back.
    failures: tuple[type[Exception], ...] = field(repr=False)
    #: What database and driver raise: not an exception that was thrown into the thread.
    of_database: tuple[type[Exception], ...] = field(repr=False)
    pool: Pool
    driver: Driver

    def has_replaced_connect(self, wrapper: Any) -> bool:
        """Return whether a connection must be taken through Django's own methods.

        That is so if the base connects in its own way, if a tool has patched a method of
        the wrapper, or if Django is to refuse.
        """
        of_this_one, ensure = wrapper.__dict__, type(wrapper).ensure_connection
        return bool(
            self.connect
            or wrapper.closed_in_transaction
            or "connect" in of_this_one
            or "ensure_connection" in of_this_one
            or (ensure is not _ENSURE_CONNECTION and not is_decorated_by_django(ensure))
        )


def definer(cls: type, name: str) -> type | None:
    """Return the class beneath ours that a call of `name` reaches first."""
    for candidate in cls.__mro__:
        if name in vars(candidate) and candidate.__module__.partition(".")[0] != OURS:
            return candidate
    return None


def is_known(cls: type | None) -> bool:
    return cls is not None and cls.__module__.partition(".")[0] in KNOWN


def is_djangos(cls: type | None) -> bool:
    return cls is not None and cls.__module__.partition(".")[0] == "django"


def _runs_once(cls: Any, name: str) -> bool:
    """Return whether a hook need not run for each lease."""
    named = getattr(cls, "once_per_connection", ())
    return name in named or is_known(definer(cls, name))


def _is_of_base(cls: type, name: str) -> bool:
    """Return whether a call of `name` reaches a class beneath our upper layer first.

    Not Django's own class; and not a subclass of a class that was made.
    """
    first = next(each for each in cls.__mro__ if name in vars(each))
    ours = [each for each in cls.__mro__ if each.__module__.partition(".")[0] == OURS]
    return first not in ours and cls.__mro__.index(first) > cls.__mro__.index(ours[0])


def _is_ours(cls: type, *names: str) -> bool:
    """Return whether calls of `names` reach this library's own methods first."""
    return all(getattr(cls, name).__module__.partition(".")[0] == OURS for name in names)


def read(cls: Any) -> Hooks:
    """Return the hooks of a wrapper class, which may be the base or made from it."""
    close = not is_known(definer(cls, "close"))
    pool = _pool_for(cls)
    if close:
        failures: tuple[type[Exception], ...] = (Exception,)  # who knows what it raises
    else:
        failures = (Error, OSError, cls.Database.Error, *pool.failures())
    return Hooks(
        connect=definer(cls, "connect") is not BaseDatabaseWrapper,
        close=close,
        health_check=not is_djangos(definer(cls, "close_if_health_check_failed")),
        cursor=_is_of_base(cls, "_cursor"),
        ensure=_is_of_base(cls, "ensure_connection")
        and not is_djangos(definer(cls, "ensure_connection")),
        init_every_time=not _runs_once(cls, "init_connection_state"),
        create_cursor=undecorated(cls.create_cursor),
        own_close=not is_known(definer(cls, "_close")),
        close_pool=not is_djangos(definer(cls, "close_pool") or BaseDatabaseWrapper),
        plain_commit=definer(cls, "commit") is BaseDatabaseWrapper,
        plain_cursors=definer(cls, "make_cursor") is BaseDatabaseWrapper,
        makes_cursors=not _is_ours(cls, "make_cursor", "make_debug_cursor"),
        failures=failures,
        of_database=(Error, cls.Database.Error),
        pool=pool,
        driver=driver_for(cls.Database),
    )


def _pool_for(cls: type) -> Pool:
    packages = {base.__module__.partition(".")[0] for base in cls.__mro__}
    if "dj_db_conn_pool" in packages:
        opens = ("get_new_connection", "get_connection_params")
        is_usual = all(_runs_once(cls, name) for name in opens)
        return QueuePool(not (is_usual and is_djangos(definer(cls, "_close"))))
    ways = ("pool", "get_new_connection", "_close", "get_connection_params")
    if all(_runs_once(cls, name) for name in ways):
        return NativePool(not is_djangos(definer(cls, "get_new_connection")))
    # Django's own `pool`, of its PostgreSQL wrapper.
    return DjangosPool() if is_djangos(definer(cls, "pool")) else Pool()
