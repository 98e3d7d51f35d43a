"""Who holds which connection, since when, and where: for people and for monitoring."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from .._pools import Census
from .._process import registry
from .._process.greenlets import Green
from .._process.origins import describe_frame


@dataclass(frozen=True)
class LeaseStatus:
    """One connection that is checked out."""

    #: The name of the thread that the wrapper belongs to.
    thread: str
    #: Each hold in words, with its origin if that was recorded.
    holds: tuple[str, ...]
    #: Seconds since the checkout.
    seconds: float
    #: Where that thread is now, outside Django and this library; None if it is gone.
    where: str | None = None

    def __str__(self) -> str:
        reasons = ", ".join(self.holds) or "no hold yet"
        place = f", now at {self.where}" if self.where else ""
        return f"thread {self.thread!r} for {self.seconds:.1f} s ({reasons}){place}"


@dataclass(frozen=True)
class PoolStatus:
    """One alias's pool: its own census, and the leases that this library knows of."""

    alias: str
    census: Census
    leases: tuple[LeaseStatus, ...]

    def __str__(self) -> str:
        held = "; ".join(map(str, self.leases)) or "nobody that this library knows of"
        return f"pool of database alias {self.alias!r}: {self.census}. Held by: {held}"


def status_of(wrapper: Any) -> PoolStatus:
    """Return the status of the pool behind a wrapper, the oldest lease first."""
    names = {each.ident: each.name for each in threading.enumerate()}
    frames = sys._current_frames()
    now = time.monotonic()
    leases = []
    for each in registry.leases(wrapper.alias):
        if not each.is_held:
            continue
        ident = each.wrapper._thread_ident
        name = names.get(ident, f"ident {ident}, which has ended")
        frame = frames.get(ident)
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
    trouble = lease.hooks.pool.trouble(lease)
    if trouble is not None:
        reason = f"the pool can't connect to the server: {trouble}. "
    else:
        reason = ""
    return (
        f"couldn't get a connection for database alias {lease.alias!r} in "
        f"{waited:.2f} s: {reason}{status_of(lease.wrapper)}"
    )
