"""Who holds which connection, since when, and where: for people and for monitoring."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from .._pools import Census
from .._process import registry
from .._process.greenlets import Green
from .._process.origins import describe_frame, frames


@dataclass(frozen=True)
class LeaseStatus:
    """One connection that is checked out."""

    #: The name of the thread that the wrapper belongs to.
    thread: str
    #: Each hold in words, with its origin if that was recorded.
    holds: tuple[str, ...]
    #: Seconds since the checkout.
    seconds: float
    #: Where that thread is now, outside Django and this library; None if it is gone, or is
    #: another than the caller's and there is no GIL.
    where: str | None = None

    def __str__(self) -> str:
        reasons = ", ".join(self.holds) or "no hold yet"
        place = f", now at {self.where}" if self.where else ""
        return f"thread {self.thread!r} for {self.seconds:.1f} s ({reasons}){place}"


@dataclass(frozen=True)
class PoolStatus:
    """One alias's pool: its census, and the leases that this library knows of.

    `str()` of it is a table for a person; `as_dict()` is for JSON.
    """

    alias: str
    census: Census
    leases: tuple[LeaseStatus, ...]

    def __str__(self) -> str:
        census = self.census
        lines = [f"pool of database alias {self.alias!r}: {census}"]
        if census.peak_in_use is not None:
            lines.append(
                f"  at its peak: in use {census.peak_in_use}, waiting "
                f"{census.peak_waiting}; longest wait {census.longest_wait:.3f} s"
            )
        if not self.leases:
            lines.append("  no wrapper holds a connection")
            return "\n".join(lines)
        rows = [("held for", "thread", "holds", "now at")]
        rows += [
            (f"{each.seconds:.1f} s", each.thread, ", ".join(each.holds), each.where or "-")
            for each in self.leases
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append(f"  {'  '.join(cells)}".rstrip())
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as what `json.dumps()` takes."""
        return asdict(self)


#: Seconds in which a server is to answer that is asked why its pool has nothing to give.
_PATIENCE = 2


def status_of(wrapper: Any) -> PoolStatus:
    """Return the status of the pool behind a wrapper, the oldest lease first."""
    names = {each.ident: each.name for each in threading.enumerate()}
    found = frames()
    now = time.monotonic()
    leases = []
    for each in registry.leases(wrapper.alias):
        if not each.is_held:
            continue
        ident = each.wrapper._thread_ident
        name = names.get(ident, f"ident {ident}, which has ended")
        frame = found.get(ident)
        if isinstance(each.owner, Green):
            name, frame = each.owner.name, each.owner.frame()
        leases.append(
            LeaseStatus(
                thread=name,
                holds=tuple(each.describe_holds()),
                seconds=now - each.holds.since,
                where=describe_frame(frame) if frame is not None else None,
            )
        )
    leases.sort(key=lambda lease: -lease.seconds)
    return PoolStatus(wrapper.alias, wrapper._hooks.pool.census(wrapper), tuple(leases))


def explain_exhaustion(lease: Any, waited: float) -> str:
    """Return what a person needs to know who reads it at three in the morning."""
    pool, status = lease.hooks.pool, status_of(lease.wrapper)
    trouble, reason = pool.trouble(lease), ""
    is_unknown = trouble is None and not status.leases and not pool.tells_trouble(lease)
    if is_unknown:
        trouble = _find_trouble(lease.wrapper)
    if trouble is not None:
        reason = f"the pool can't connect to the server: {trouble}. "
    elif is_unknown:
        reason = (
            "perhaps the pool can't connect to the server; if so, the log of psycopg.pool "
            "says why. "
        )
    return (
        f"couldn't get a connection for database alias {lease.alias!r} in "
        f"{waited:.2f} s: {reason}{_in_words(status)}"
    )


def _find_trouble(wrapper: Any) -> Exception | None:
    """Return why the server can't be reached, if an attempt of our own shows it.

    A pool that this library does not know logs that, and does not say it.
    """
    try:
        params = {"connect_timeout": _PATIENCE, **wrapper.get_connection_params()}
        wrapper.Database.connect(**params).close()
    except wrapper.Database.Error as error:
        return error  # type: ignore[no-any-return]
    except Exception:  # noqa: BLE001 - its parameters are for something else
        return None
    return None


def _in_words(status: PoolStatus) -> str:
    """Return a sentence, for an error message."""
    held = "; ".join(map(str, status.leases)) or "no wrapper"
    return f"pool of database alias {status.alias!r}: {status.census}. Held by: {held}"
