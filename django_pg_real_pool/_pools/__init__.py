"""What differs between pools: one adapter for each, behind one interface.

`Pool` is the safe default for a pool that this library has never seen.  All that it
asks of a base wrapper is what Django asks: `get_new_connection()` gets a connection,
`_close()` gives it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import NO_DB_ALIAS

if TYPE_CHECKING:
    from .._state import LeaseState


@dataclass(frozen=True)
class Census:
    """A pool's count of its connections; None where it does not tell."""

    max_size: int | None = None
    size: int | None = None
    idle: int | None = None
    in_use: int | None = None
    waiting: int | None = None

    def __str__(self) -> str:
        counts = {
            "size": self.size,
            "at most": self.max_size,
            "in use": self.in_use,
            "idle": self.idle,
            "waiting": self.waiting,
        }
        known = [f"{name} {count}" for name, count in counts.items() if count is not None]
        return ", ".join(known) or "it does not tell its size"


class Pool:
    """Any pool behind any wrapper."""

    #: Where in an alias's settings the size of its pool is; empty: it is not known.
    size_setting = ""

    def failures(self) -> tuple[type[Exception], ...]:
        """Return the classes of what the pool may raise when a connection comes back."""
        return (Exception,)

    def exhausted(self) -> tuple[type[BaseException], ...]:
        """Return the classes of what the pool raises when no connection is free."""
        return ()

    def trouble(self, wrapper: LeaseState) -> BaseException | None:
        """Return why the pool can't connect, if it can't and knows."""
        return None

    def releases(self, wrapper: LeaseState) -> bool:
        """Return whether `wrapper`, with the settings it has now, is behind a pool."""
        if wrapper.alias == NO_DB_ALIAS:  # Django's detour to make a test database
            return False
        return wrapper.settings_dict["OPTIONS"].get("pool") is not False

    def prepare(self, wrapper: LeaseState) -> None:
        """Make the pool that the base would make when its `pool` is read."""

    def checkout(self, wrapper: LeaseState) -> Any:
        """Return a connection that is `wrapper`'s alone until `checkin`."""
        return wrapper.get_new_connection(wrapper.get_connection_params())

    def shortcut(self, wrapper: LeaseState) -> Any:
        """Return a quicker way to do what `checkout` and `checkin` do, if there is one.

        `wrapper` has been given a connection the long way.
        """
        return None

    def introduce(self, wrapper: LeaseState) -> None:
        """Do what the base does once for a connection, beyond what `checkout` did."""

    def reconfigure(self, wrapper: LeaseState) -> None:
        """Do again what the pool did when it made the connection, after a reset."""

    def checkin(self, wrapper: LeaseState) -> None:
        """Give `wrapper.connection` back."""
        wrapper._close()

    def was_checked_in(self, physical: Any) -> None:
        """Note that the base gave a connection back by itself."""

    def discard(self, wrapper: LeaseState) -> None:
        """End the connection, before `checkin`: nobody may get it as it is."""
        self.physical(wrapper.connection).close()

    def close(self, wrapper: LeaseState) -> None:
        """Close `wrapper`'s pool as far as the base's `close_pool()` does not."""

    def physical(self, connection: Any) -> Any:
        """Return what stays the same each time the pool gives out one connection."""
        return connection

    def most(self, settings_dict: Mapping[str, Any]) -> int | None:
        """Return how many connections the settings allow; None if that is not known."""
        return None

    def census(self, wrapper: LeaseState) -> Census:
        """Count the connections of `wrapper`'s pool, as far as it tells."""
        return Census()

    def abandon(self) -> Any:
        """In a forked child: forget the parent's pools, touching none of their locks.

        Returns what must not be collected as long as the child lives.
        """
        return None
