"""After fork(): a child forgets its parent's connections and never touches them.

None of them may be closed: that would say goodbye on the parent's socket.  Nor may one be
collected, so they are kept for the child's lifetime.  Code that still has one reaches
nobody, because its socket was replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import reaper, registry

#: What a child inherited.  Its only use is that nothing in it is ever collected.
_inherited: list[Any] = []
#: What cuts the connections of the parent off, by driver.
_cutting: list[Callable[[], None]] = []


def _forget_parent() -> None:
    """Run in the child, on the only thread that it has, before anything else."""
    for cut in _cutting:
        cut()
    _inherited.append(registry.forget())
    _inherited.extend(each.abandon() for each in registry.adapters())
    _inherited.extend(each.forget_parent() for each in registry.leases())
    _inherited.append(reaper.forget())


def watch(*cutting: Callable[[], None]) -> None:
    """From here on, notice each fork of this process; `cutting` cuts connections off."""
    _cutting.extend(cutting)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_parent)
