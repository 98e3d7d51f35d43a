"""Every wrapper of this process, whichever thread it belongs to."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from ._checkout import Checkout

_lock = RLock()
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
    _lock = RLock()


#: What wrappers keep alive, each in a list of its own, by that list's identity.
_kept: dict[int, list[Any]] = {}


def keeper() -> list[Any]:
    """Return a list of one: while a connection is out, it is there as well.

    A wrapper that is collected must not take its connection along, because pools have
    finalisers of their own; of what is in here nothing is collected.
    """
    kept = [None]
    _kept[id(kept)] = kept
    return kept


def forget_keeper(kept: list[Any] | None) -> None:
    _kept.pop(id(kept), None)
