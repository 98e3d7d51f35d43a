"""Every lease and every pool of this process, whichever thread they belong to."""

from __future__ import annotations

from threading import RLock
from typing import Any, Protocol
from weakref import WeakSet


class Leased(Protocol):
    """What is asked of a lease from outside its own thread."""

    @property
    def alias(self) -> str: ...

    def reap(self) -> None:
        """Give back what nobody will give back any more."""

    def forget_parent(self) -> Any:
        """In a forked child: forget the parent's connection, and return it."""


class Pooling(Protocol):
    """What is asked of a pool."""

    def reap(self) -> None:
        """Replace connections that were lost."""


class Adapting(Protocol):
    """What is asked of an adapter."""

    def abandon(self) -> Any:
        """In a forked child: forget the parent's pools, and return them."""

    def close_all_of(self, database: Any) -> None:
        """Close the pools of a database."""


_lock = RLock()
_leases: WeakSet[Any] = WeakSet()
_pools: WeakSet[Any] = WeakSet()
#: The adapters of all classes that were made.
_adapters: WeakSet[Any] = WeakSet()


def add_lease(lease: Leased) -> None:
    with _lock:
        _leases.add(lease)


def add_pool(pool: Pooling) -> None:
    with _lock:
        _pools.add(pool)


def add_adapter(adapter: Adapting) -> None:
    with _lock:
        _adapters.add(adapter)


def leases(alias: str | None = None) -> list[Any]:
    """Return the leases of one alias, or of all."""
    with _lock:
        everyone = list(_leases)
    return [each for each in everyone if alias is None or each.alias == alias]


def pools() -> list[Any]:
    with _lock:
        return list(_pools)


def adapters() -> list[Any]:
    with _lock:
        return list(_adapters)


def forget() -> Any:
    """In a forked child: another thread of the parent may have held the lock.

    Returns what must not be collected as long as the child lives.
    """
    global _lock, _pools
    _lock = RLock()
    inherited = pools()
    _pools = WeakSet()
    return inherited
