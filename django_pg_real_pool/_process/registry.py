"""Every lease and every pool of this process, whichever thread they belong to."""

from __future__ import annotations

from typing import Any, Protocol

from .weak import WeakBag


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


_leases: WeakBag[Any] = WeakBag()
_pools: WeakBag[Any] = WeakBag()
#: The adapters of all classes that were made.
_adapters: WeakBag[Any] = WeakBag()


def add_lease(lease: Leased) -> None:
    _leases.add(lease)


def add_pool(pool: Pooling) -> None:
    _pools.add(pool)


def add_adapter(adapter: Adapting) -> None:
    _adapters.add(adapter)


def leases(alias: str | None = None) -> list[Any]:
    """Return the leases of one alias, or of all."""
    return [each for each in _leases if alias is None or each.alias == alias]


def pools() -> list[Any]:
    return list(_pools)


def adapters() -> list[Any]:
    return list(_adapters)


def forget() -> Any:
    """In a forked child: the parent's pools are not the child's.

    Returns what must not be collected as long as the child lives.
    """
    inherited = pools()
    _pools.clear()
    return inherited
