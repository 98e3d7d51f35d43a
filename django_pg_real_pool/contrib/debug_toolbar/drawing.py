"""Draws what was recorded of one request: HTML with a picture, from what JSON has kept.

Colours are of attributes only, since a page's policy may forbid style sheets, and are
readable on light and on dark.  Everything else takes the toolbar's own colours.
"""

from __future__ import annotations

import heapq
import os
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from django.template import Context, Engine, Template

COLOURS = {
    "transaction": "#e07b1f",
    "cursor": "#2f86d9",
    "session": "#cf4a86",
    "pin": "#8a63d2",
    "connect": "#1f9d8b",
    "nothing": "#8c939a",
    "unknown": "#8c939a",
}
#: What is kept although nothing needs it is paler than what is held.
PALE = ("nothing", "unknown")

WORDS = {
    "transaction": "a transaction",
    "cursor": "a query or open cursor",
    "session": "a changed session",
    "pin": "pin_connection()",
    "connect": "connect()",
    "nothing": "kept, and not needed",
    "unknown": "kept since before the toolbar began, or from no pool",
}

HINTS = {
    "transaction": "What needs no database can be done before the transaction, or after it.",
    "cursor": "An iterator holds its connection until it is read to the end.",
    "session": "A statement changed the session, which is kept to the end of the request. "
    "SET LOCAL, or set_config(..., true), in a transaction would not.",
    "pin": "pin_connection() holds the connection until its block is left.",
    "connect": "connect() holds the connection until something has used it, or close().",
}

#: Pixels: of a row, of the text above its bar, of the bar, and of the time axis.
ROW, TEXT, BAR, AXIS = 54, 26, 24, 22
#: So many lines of code are listed.
MOST_LINES = 50
#: A wait is drawn that lasted so many seconds: less than that is no wait.
SHORTEST_WAIT = 0.0002


def subtitle(stats: dict[str, Any]) -> str:
    """Return what the toolbar says beside the panel's name."""
    if not stats.get("leases"):
        return "none held"
    held = sum(_seconds(lease) for lease in stats["leases"])
    return f"held {_ms(held)} of {_ms(stats['took'])}"


def draw(stats: dict[str, Any]) -> str:
    """Return the panel's HTML; nothing if nothing was recorded."""
    if not stats:
        return ""
    lanes = _lanes(stats)
    lines = sorted(_lines(lanes), key=lambda line: -line.seconds)
    top = next((line for line in lines if line.name not in PALE), None)
    names = {line.name for line in lines}
    has_several = len({lane.alias for lane in lanes}) > 1
    context = {
        "took": _ms(stats["took"]),
        "lanes": [_picture(lane, stats, n) for n, lane in enumerate(lanes)],
        "height": len(lanes) * ROW + AXIS,
        "top_of_bars": TEXT,
        "bottom": len(lanes) * ROW,
        "axis": list(_axis(stats["took"])),
        "legend": [_legend(name) for name in COLOURS if name in names],
        "has_waits": any(lane.waits for lane in lanes),
        "databases": list(_databases(lanes, stats)),
        "top": top and {**_row(top), "hint": _hint(top)},
        "lines": [_row(line) for line in lines[:MOST_LINES]],
        "others": max(0, len(lines) - MOST_LINES),
        "has_several": has_several,
        "is_stock": any(
            line.name == "nothing" and line.alias == (top and top.alias) for line in lines
        ),
    }
    return _template().render(Context(context, use_l10n=False))


@cache
def _template() -> Template:
    return Engine(dirs=[str(Path(__file__).parent)]).get_template("panel.html")


# ##### What the records say #####


class Part(NamedTuple):
    """A part of a lease, and the hold that explains it: name, beginning, end, origin."""

    hold: Any
    began: float
    ended: float


def parts_of(lease: dict[str, Any]) -> list[Part]:
    """Return what held a connection, part by part: of holds that overlap, the longest."""
    found: list[Part] = []
    for part in _covered(lease["holds"]):
        if found and found[-1].hold is part.hold and found[-1].ended == part.began:
            found[-1] = found[-1]._replace(ended=part.ended)
        else:
            found.append(part)
    if lease["rest"] is None:
        return found
    began, ended = lease["time"]
    edges = [began, *(edge for part in found for edge in part[1:]), ended]
    rest = (lease["rest"], began, ended, "")
    gaps = zip(edges[::2], edges[1::2], strict=True)
    found += [Part(rest, start, end) for start, end in gaps if end > start]
    return sorted(found, key=lambda part: part.began)


def _covered(holds: Iterable[Any]) -> Iterator[Part]:
    to_come = sorted(holds, key=lambda hold: hold[1], reverse=True)
    edges = sorted({edge for hold in to_come for edge in hold[1:3]})
    here: list[tuple[float, int, Any]] = []
    for start, end in pairwise(edges):
        while to_come and to_come[-1][1] <= start:
            hold = to_come.pop()
            heapq.heappush(here, (hold[1] - hold[2], len(to_come), hold))
        while here and here[0][2][2] <= start:
            heapq.heappop(here)
        if here:
            yield Part(here[0][2], start, end)


class Lane:
    """What one thread did with one alias."""

    def __init__(self, alias: str, thread: str) -> None:
        self.alias, self.thread = alias, thread
        self.leases: list[dict[str, Any]] = []
        #: Beginning, end and text of each.
        self.queries: list[tuple[float, float, str]] = []
        #: Beginning and end of each, and whether it was for nothing.
        self.waits: list[tuple[float, float, bool]] = []

    def in_queries(self, began: float, ended: float) -> float:
        """Return for how many seconds of a span there were queries."""
        first = max(0, bisect_left(self.queries, (began,)) - 1)  # which may go on
        last = bisect_left(self.queries, (ended,))
        return sum(
            max(0.0, min(end, ended) - max(start, began))
            for start, end, _ in self.queries[first:last]
        )


def _lanes(stats: dict[str, Any]) -> list[Lane]:
    lanes: dict[tuple[str, str], Lane] = {}

    def lane(alias: str, thread: str | None) -> Lane:
        if thread is None:  # the first that there is
            thread = next((key[1] for key in lanes if key[0] == alias), "")
        return lanes.setdefault((alias, thread), Lane(alias, thread))

    for lease in stats["leases"]:
        here, began = lane(lease["alias"], lease["thread"]), lease["time"][0]
        here.leases.append(lease)
        if lease["waited"] >= SHORTEST_WAIT:
            here.waits.append((max(0.0, began - lease["waited"]), began, False))
    for alias, thread, began, ended, sql in stats["queries"]:
        lane(alias, thread).queries.append((began, ended, sql))
    for alias, thread, began, ended in stats["timeouts"]:
        lane(alias, thread).waits.append((max(0.0, began), ended, True))
    for each in lanes.values():
        each.queries.sort()
    return list(lanes.values())


class Line:
    """A line of the user's code, and how long what began there held a connection."""

    def __init__(self, alias: str, name: str, origin: str) -> None:
        self.alias, self.name, self.origin = alias, name, origin
        #: Seconds of each hold that began here, by when that was.
        self.of_holds: dict[float, float] = {}
        self.in_queries = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.of_holds.values())


def _lines(lanes: list[Lane]) -> list[Line]:
    lines: dict[tuple[str, str, str], Line] = {}
    for lane in lanes:
        for lease in lane.leases:
            for part in parts_of(lease):
                name, began, _, origin = part.hold
                line = lines.setdefault(
                    (lane.alias, name, origin), Line(lane.alias, name, origin)
                )
                seconds = part.ended - part.began
                line.of_holds[began] = line.of_holds.get(began, 0.0) + seconds
                line.in_queries += lane.in_queries(part.began, part.ended)
    return list(lines.values())


def _seconds(lease: dict[str, Any]) -> float:
    began, ended = lease["time"]
    return float(ended - began)


# ##### In words #####


def _ms(seconds: float) -> str:
    ms = seconds * 1000
    return (
        f"{ms:.2f} ms" if ms < 9.995 else f"{ms:.1f} ms" if ms < 1000 else f"{ms:,.0f} ms"
    )


def _share(seconds: float, of: float) -> str:
    return f"{100 * seconds / of:.0f} %" if of else ""


def _row(line: Line) -> dict[str, Any]:
    return {
        "alias": line.alias,
        **_legend(line.name),
        "origin": line.origin,
        "place": _place(line.origin),
        "times": len(line.of_holds),
        "seconds": _ms(line.seconds),
        "longest": _ms(max(line.of_holds.values())),
        "in_queries": _ms(line.in_queries),
    }


def _hint(line: Line) -> str:
    """Return what could be done, if it is not the queries that took so long."""
    return "" if 2 * line.in_queries > line.seconds else HINTS[line.name]


def _legend(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "words": WORDS[name],
        "colour": COLOURS[name],
        "opacity": "0.3" if name in PALE else "1",
    }


def _place(origin: str) -> str:
    """Return an origin as its project names it: from where Python imports it."""
    roots = [os.path.join(path, "") for path in sys.path if path]
    inside = [root for root in roots if origin.startswith(root)]
    return origin[len(max(inside, key=len, default="")) :]


def _databases(lanes: list[Lane], stats: dict[str, Any]) -> Iterator[dict[str, Any]]:
    took = stats["took"]
    for alias in dict.fromkeys(lane.alias for lane in lanes):
        here = [lane for lane in lanes if lane.alias == alias]
        leases = [lease for lane in here for lease in lane.leases]
        parts = [part for lease in leases for part in parts_of(lease)]
        held = sum(map(_seconds, leases))
        unused = sum(x.ended - x.began for x in parts if x.hold[0] == "nothing")
        waited = sum(end - began for lane in here for began, end, _ in lane.waits)
        yield {
            "alias": alias,
            "engine": stats["engines"][alias],
            "times": len(leases),
            "held": _ms(held),
            "share": _share(held, took),
            "is_stock": any(lease["rest"] == "nothing" for lease in leases),
            "needed": _ms(held - unused),
            "needed_share": _share(held - unused, took),
            "unused": _ms(unused),
            "queries": sum(len(lane.queries) for lane in here),
            "in_queries": _ms(sum(x[1] - x[0] for lane in here for x in lane.queries)),
            "has_waited": waited > 0,
            "waited": _ms(waited),
        }


# ##### The picture #####


def _picture(lane: Lane, stats: dict[str, Any], number: int) -> dict[str, Any]:
    took = stats["took"]

    def box(began: float, ended: float, title: str) -> dict[str, Any]:
        return {
            "x": _percent(began, took),
            "width": _percent(ended - began, took),
            "title": title,
        }

    bars = []
    for lease in lane.leases:
        for part in parts_of(lease):
            name, _, _, origin = part.hold
            seconds = part.ended - part.began
            title = f"{WORDS[name]}, {_ms(seconds)}"
            if origin:
                title += f", began at {origin}"
            bars.append({**_legend(name), **box(part.began, part.ended, title)})
    thread = stats["threads"].get(lane.thread, "")
    return {
        "alias": lane.alias,
        "thread": thread,
        "y": number * ROW,
        "text": number * ROW + TEXT - 6,
        "bar": number * ROW + TEXT,
        "tick": number * ROW + TEXT + 6,
        "held": _ms(sum(map(_seconds, lane.leases))),
        "is_out": any(lease["is_out"] for lease in lane.leases),
        "bars": bars,
        "waits": [
            box(
                began,
                ended,
                f"waited {_ms(ended - began)} for a connection"
                + (", and got none" if in_vain else ""),
            )
            for began, ended, in_vain in lane.waits
        ],
        "queries": [
            box(began, ended, f"{_ms(ended - began)}: {sql}")
            for began, ended, sql in lane.queries
        ],
    }


def _percent(seconds: float, of: float) -> str:
    return f"{100 * seconds / of:.4f}%" if of else "0%"


def _axis(took: float) -> Iterator[dict[str, str]]:
    """Yield where the time line is marked: at some five round times."""
    steps = (digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5))
    step = next(step for step in steps if took / step <= 7)
    at = 0.0
    while at <= took:
        anchor = "start" if not at else "end" if at > 0.97 * took else "middle"
        ms = f"{at * 1000:g} ms"
        yield {"x": _percent(at, took), "ms": ms, "anchor": anchor}
        at = round(at + step, 9)
