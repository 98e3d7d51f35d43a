"""An observer that remembers all that it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django_pg_real_pool import observers


class Watcher(observers.Observer):
    """Remembers; of one alias, or of all."""

    def __init__(self, alias: str | None = None) -> None:
        self.alias = alias
        self.taken_leases: list[observers.Lease] = []
        self.leases: list[observers.Lease] = []
        self.of_pool: list[tuple[Any, ...]] = []

    def taken(self, lease: observers.Lease) -> None:
        if self.alias in (None, lease.alias):
            assert lease.ended is None
            self.taken_leases.append(lease)

    def given_back(self, lease: observers.Lease) -> None:
        if self.alias in (None, lease.alias):
            self.leases.append(lease)

    def timed_out(self, alias: str, waited: float) -> None:
        self._note("timed out", alias, waited)

    def connection_made(self, alias: str, seconds: float) -> None:
        self._note("made", alias, seconds)

    def connection_failed(self, alias: str, seconds: float, error: Exception) -> None:
        self._note("failed", alias, seconds, error)

    def connection_closed(self, alias: str, why: observers.Closing) -> None:
        self._note("closed", alias, why)

    def _note(self, event: str, alias: str, *args: Any) -> None:
        if self.alias in (None, alias):
            self.of_pool.append((event, *args))

    @property
    def names(self) -> list[list[str]]:
        """The names of each lease's holds."""
        return [[hold.name for hold in lease.holds] for lease in self.leases]


@contextmanager
def watching(observer: Any, origins: bool = False) -> Iterator[Any]:
    observers.add(observer, origins=origins)
    try:
        yield observer
    finally:
        observers.remove(observer)
