"""What a lease remembers, each as a fact with a name.  Like `rule.py`: no imports of ours.

None of these is ever concluded from something else's status: a dead connection looks like
one whose transaction has ended, and half a transaction was once committed because of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any


class Use(enum.Enum):
    """What the wrapper has been used for since `close()`: what stock calls connected."""

    #: Nothing yet.
    NONE = "not used"
    #: It takes connections from a pool and gives them back.
    POOLED = "pooled"
    #: Its alias has no pool (`"pool": False`): stock's behaviour throughout.
    UNPOOLED = "without a pool"


class Phase(enum.Enum):
    """Where the connection is, between the pool and the wrapper."""

    #: The pool has it.
    FREE = "free"
    #: Django's `ensure_connection()` was asked, and is to arrive at `connect()`.
    ASKED = "asked for"
    #: It is on its way here, and being set up.
    TAKING = "being taken"
    #: The wrapper has it.
    HELD = "held"
    #: It is on its way back: being cleaned, or in the base's `close()`.
    RETURNING = "being returned"
    #: As before, because `close()` was called and the session ends.
    CLOSING = "being closed"
    #: The pool has it again, though the wrapper may still point to it.
    RETURNED = "returned"


F, A, T, H, G, C, R = Phase

#: Each change of phase that there is.  The first of each pair is where an interruption can
#: leave a lease; the next entry then goes on from there.
MOVES: dict[Phase, frozenset[Phase]] = {
    F: frozenset({F, A, T}),
    A: frozenset({F, T}),
    T: frozenset({F, H, G, C, R}),
    H: frozenset({F, A, G, C, R}),
    G: frozenset({F, R}),
    C: frozenset({F, R}),
    R: frozenset({F}),
}


class Transaction(enum.Enum):
    """The wrapper's transaction, as far as the server was told of it."""

    #: None.
    NONE = "none"
    #: A statement has begun one, and nothing has ended it.
    BEGUN = "begun"
    #: It began, and then its connection was gone: nothing may be sent until its end.
    LOST = "lost"


class Pin:
    """One entry into `pin_connection()`, say; it lives no longer than its block."""

    __slots__ = ("__weakref__",)


class Debt(enum.IntEnum):
    """What a session owes before anybody else may have its connection."""

    NOTHING = 0
    #: Somebody may have changed it: it is reset.
    CLEANING = 1
    #: No reset brings back what was changed: the connection is replaced.
    REPLACEMENT = 2


#: The wrapper's view of its transaction: what stock's connect() resets.
TRANSACTION_STATE: dict[str, Callable[[], Any]] = {
    "in_atomic_block": bool,
    "savepoint_ids": list,
    "atomic_blocks": list,
    "needs_rollback": bool,
    "rollback_exc": type(None),
    "commit_on_exit": lambda: True,
    "run_on_commit": list,
    "run_commit_hooks_on_set_autocommit_on": bool,
}
