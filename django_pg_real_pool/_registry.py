"""Every wrapper of this process, whichever thread it belongs to."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from ._checkout import Checkout

_lock = Lock()
_wrappers: WeakSet[Checkout] = WeakSet()


def add(wrapper: Checkout) -> None:
    with _lock:
        _wrappers.add(wrapper)


def wrappers(alias: str | None = None) -> list[Checkout]:
    """Return the wrappers of one alias, or of all."""
    with _lock:
        everyone = list(_wrappers)
    return [each for each in everyone if alias is None or each.alias == alias]


def renew_lock() -> None:
    """In a forked child: another thread of the parent may have held it."""
    global _lock
    _lock = Lock()


#: The connections that are out, by the identity of their wrapper.  A wrapper that is
#: collected must not take its connection along: pools have finalisers of their own.
leased: dict[int, Any] = {}
