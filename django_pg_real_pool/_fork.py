"""After fork(): a child forgets its parent's connections and never touches them.

Not one of them may be closed, not even politely: that would send a farewell on the
parent's socket.  Nor may one be collected, so they are kept for the child's lifetime.
And whoever has one all the same reaches nobody, because its socket is another.
"""

from __future__ import annotations

import os
from threading import RLock
from typing import Any
from weakref import WeakSet

from . import _drivers, _garbage, _reaper, _registry
from ._drivers import psycopg3
from ._lease import Event, Hold
from ._pools import Pool

#: What a child inherited.  Its only use is that nothing in it is ever collected.
_inherited: list[Any] = []


#: The adapters of all classes that were made.
pools_in_use: WeakSet[Pool] = WeakSet()


def _forget_parent() -> None:
    """Run in the child, on the only thread that it has, before anything else."""
    psycopg3.cut_inherited()
    _drivers.cut_inherited()
    _registry.renew_lock()
    _garbage.forget()
    for adapter in pools_in_use:
        _inherited.append(adapter.abandon())
    for wrapper in _registry.wrappers():
        wrapper._lease_lock = RLock()
        if not wrapper._releasing:
            continue
        for find in wrapper._lease.holds.get(Hold.CURSOR, {}).values():
            cursor = find() if find is not None else None
            if cursor is not None:
                wrapper._hooks.driver.abandon(cursor)
        _inherited.append(wrapper.connection)
        wrapper.connection = wrapper._keeper[0] = None
        wrapper._is_given_back = wrapper._ending_lease = False
        wrapper._was_cut_off = wrapper._hooks.close
        wrapper._lease.happened(Event.CLOSED)
        wrapper._setting_up = 0
        wrapper._is_dirty = wrapper._is_beyond_reset = False
        wrapper._portals.clear()
        wrapper._closed_elsewhere.clear()
        # A transaction of the parent is none of the child's, whatever block it is in.
        wrapper._reset_transaction_state()
        wrapper._end_session()
    _inherited.append(_reaper.forget())


def watch() -> None:
    """From here on, notice each fork of this process."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_parent)
