"""Tells on which thread Python is collecting garbage: nothing may be released there.

The collector runs at any moment, so perhaps under a pool's lock, and in any thread; what
it finds may be a generator, and to end one is to close the cursor that it reads from.
"""

from __future__ import annotations

import gc
from _thread import get_ident
from collections.abc import Mapping

#: The thread that collects now, if there is one: only one can at a time.
collecting: int | None = None


def forget() -> None:
    """In a forked child: another thread of the parent may have been collecting."""
    global collecting
    collecting = None


def _note(phase: str, _: Mapping[str, int]) -> None:
    global collecting
    collecting = get_ident() if phase == "start" else None


getattr(gc, "callbacks", []).append(_note)  # of CPython
