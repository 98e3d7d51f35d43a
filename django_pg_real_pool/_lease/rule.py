"""When is a connection held?  This module answers, and nothing else decides.

Rule 1: a wrapper has a lease if and only if it has at least one hold.
Rule 2: this file knows neither Django nor a driver; it imports the standard library.

A hold is one *reason* why the lease may not end yet.  `TABLE` says which event begins
which hold, and which holds an event ends; `Holds` applies it.  What several can have at
once (two open cursors, nested pins) ends with the last of them:

=================  ====================================  ==========================
hold               begins                                ends
=================  ====================================  ==========================
open cursor        a cursor is opened                    it is closed, or found lost
transaction        a statement opens a transaction       COMMIT or ROLLBACK
pin                `pin_connection()` is entered         it is left
session state      a statement changes the session       `close()`
explicit connect   `connect()` or `ensure_connection()`  any other hold ends
each of them                                             `close()`
=================  ====================================  ==========================
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterator
from time import monotonic
from typing import Any, NamedTuple


class Hold(enum.Enum):
    """A reason why a connection may not go back to its pool yet."""

    CURSOR = "open cursor"
    TRANSACTION = "transaction"
    PIN = "pin"
    SESSION = "session state"
    CONNECT = "explicit connect"

    # Members are singletons; Enum's own hash runs Python code, twice per query.
    __hash__ = object.__hash__


class Event(enum.Enum):
    """Something that begins a hold or ends one."""

    CURSOR_OPENED = "cursor opened"
    CURSOR_CLOSED = "cursor closed"
    TRANSACTION_BEGAN = "transaction began"
    TRANSACTION_ENDED = "transaction ended"
    PIN_ENTERED = "pin entered"
    PIN_LEFT = "pin left"
    SESSION_CHANGED = "session changed"
    CONNECTED = "connected"
    CLOSED = "closed"

    __hash__ = object.__hash__


class Transition(NamedTuple):
    """What an event does.

    It begins one hold, or it ends some.  The first of `ends` is the hold of the holder
    that is named with the event; the others end along with it.
    """

    begins: Hold | None = None
    ends: tuple[Hold, ...] = ()


TABLE: dict[Event, Transition] = {
    Event.CURSOR_OPENED: Transition(begins=Hold.CURSOR),
    Event.CURSOR_CLOSED: Transition(ends=(Hold.CURSOR, Hold.CONNECT)),
    Event.TRANSACTION_BEGAN: Transition(begins=Hold.TRANSACTION),
    Event.TRANSACTION_ENDED: Transition(ends=(Hold.TRANSACTION, Hold.CONNECT)),
    Event.PIN_ENTERED: Transition(begins=Hold.PIN),
    Event.PIN_LEFT: Transition(ends=(Hold.PIN, Hold.CONNECT)),
    Event.SESSION_CHANGED: Transition(begins=Hold.SESSION),
    Event.CONNECTED: Transition(begins=Hold.CONNECT),
    Event.CLOSED: Transition(ends=tuple(Hold)),
}

_CLOSED = Event.CLOSED  # before Python 3.12, to look a member up is slow

#: Returns the thing that has the hold, or None once nobody can end it any more.
Finder = Callable[[], Any]


class Span:
    """One hold from its beginning to its end, noted while somebody wants to know."""

    __slots__ = ("began", "ended", "hold", "origin", "who")

    def __init__(self, hold: Hold, who: Hashable, origin: str | None) -> None:
        self.hold = hold
        self.who = who
        self.began = monotonic()
        self.ended: float | None = None
        self.origin = origin


class Holds:
    """The holds of one wrapper.

    Unlike a lock it is not owned by whoever began it: `close()` ends every hold at
    once, and ending a hold that is gone already changes nothing.
    """

    __slots__ = ("find_origin", "now", "origins", "since", "spans")

    def __init__(self) -> None:
        #: Each hold there is now, with who has it.  A key that is absent is a hold that
        #: is absent, so an empty dict means: release.  Only `happened` writes here.
        self.now: dict[Hold, dict[Hashable, Finder | None]] = {}
        #: Where in the user's code a holder began, for those that were recorded.
        self.origins: dict[Hashable, str] = {}
        #: `time.monotonic()` of the checkout; stale while nothing is held.
        self.since = 0.0
        #: Every hold since the checkout; None: nobody wants to know.
        self.spans: list[Span] | None = None
        #: Tells each span where it began; None: nobody wants to know.
        self.find_origin: Callable[[], str] | None = None

    def __repr__(self) -> str:
        return f"<Holds: {', '.join(self.describe()) or 'no holds'}>"

    def watch(self, find_origin: Callable[[], str] | None = None) -> None:
        """Note each hold in `spans` from here on."""
        self.spans, self.find_origin = [], find_origin

    def happened(
        self, event: Event, who: Hashable = None, find: Finder | None = None
    ) -> None:
        """Apply `event`.

        `who` tells the holders of one hold apart (a cursor's identity, a pin's token);
        without it the holds end for all.  Somebody who holds nothing ends nothing.
        """
        begins, ends = TABLE[event]
        holds = self.now
        if begins is not None:
            holders = holds.get(begins)
            if self.spans is not None and (holders is None or who not in holders):
                find_origin = self.find_origin
                origin = None if find_origin is None else find_origin()
                self.spans.append(Span(begins, who, origin))
            if holders is None:
                holds[begins] = {who: find}
            else:
                holders[who] = find
            return
        if event is not _CLOSED:
            holders = holds.get(ends[0])
            if holders is None:
                return  # what is not held can't end, nor does it end the others
            if who is not None:
                if who not in holders:
                    return
                if len(holders) > 1:  # another cursor is open, or an outer pin is entered
                    del holders[who]
                    self.origins.pop(who, None)
                    if self.spans is not None:
                        self._note_endings(self.spans)
                    return
        for hold in ends:
            ended = holds.pop(hold, None)
            if ended is not None and self.origins:
                for each in ended:
                    self.origins.pop(each, None)
        if self.spans is not None:
            self._note_endings(self.spans)

    def _note_endings(self, spans: list[Span]) -> None:
        for span in spans:
            if span.ended is None and span.who not in self.now.get(span.hold, ()):
                span.ended = monotonic()

    def lost(self) -> Iterator[tuple[Event, Hashable]]:
        """Yield the ending event for each cursor that nobody can close any more."""
        for who, find in list(self.now.get(Hold.CURSOR, {}).items()):
            if find is not None and find() is None:
                yield Event.CURSOR_CLOSED, who

    def describe(self) -> list[str]:
        """Return each holder in words, with where it began if that was recorded."""
        origins = dict(self.origins)
        return [
            f"{hold.value} (began at {origins[who]})" if who in origins else hold.value
            for hold, holders in list(self.now.items())
            for who in list(holders)
        ]
