"""Draws `_static/request.svg`: one request, and who has a connection during it.

`STEPS` is a claim about both engines; `tests/repository/test_docs.py` runs the same request on each
and compares.  Run this file after changing it.
"""

from __future__ import annotations

from enum import Enum
from html import escape
from pathlib import Path
from typing import NamedTuple

SVG = Path(__file__).parent / "_static" / "request.svg"


class Kind(Enum):
    """Whether a step talks to the database."""

    DATABASE = "database"
    OTHER = "other"


class Step(NamedTuple):
    """A part of the request, and which engine has a connection checked out in it."""

    label: tuple[str, ...]
    width: int
    kind: Kind
    stock: bool
    ours: bool


STEPS = (
    Step(("routing,", "session"), 80, Kind.OTHER, stock=False, ours=False),
    Step(("query",), 55, Kind.DATABASE, stock=True, ours=True),
    Step(("call to", "an API"), 150, Kind.OTHER, stock=True, ours=False),
    Step(("atomic():", "compute"), 80, Kind.OTHER, stock=True, ours=False),
    Step(("insert,", "update,", "COMMIT"), 70, Kind.DATABASE, stock=True, ours=True),
    Step(("on_commit():", "send mail"), 105, Kind.OTHER, stock=True, ours=False),
    Step(("render,", "send"), 100, Kind.OTHER, stock=True, ours=False),
)

LEFT = 110
WIDTH = LEFT + sum(step.width for step in STEPS) + 10
HEIGHT = 205
ROWS = (("stock", 102), ("this library", 146))

#: Each rule names the picture: in a page, its style sheet is the whole page's.
STYLE = """\
    .request text { font: 13px sans-serif; fill: var(--color-foreground-primary, #222) }
    .request .step text { text-anchor: middle }
    .request .step rect { stroke: var(--color-foreground-muted, #777) }
    .request .other rect { fill: none }
    .request .database rect, .request .held { fill: #1f6fc4 }
    .request .database text { fill: #fff; font-weight: bold }
    .request .row { stroke: var(--color-foreground-muted, #777); stroke-dasharray: 2 4 }"""


def draw() -> str:
    """Return the picture.  Its colours follow the page's theme."""
    parts: list[str] = []
    at = LEFT
    for step in STEPS:
        middle = at + step.width / 2
        top = 44 - 8 * len(step.label)
        lines = "".join(
            f'<text x="{middle:g}" y="{top + 16 * number:g}">{escape(line)}</text>'
            for number, line in enumerate(step.label, 1)
        )
        parts.append(
            f'<g class="step {step.kind.value}">'
            f'<rect x="{at}" y="18" width="{step.width}" height="60"/>{lines}</g>'
        )
        at += step.width
    for (name, y), held in zip(
        ROWS, ([s.stock for s in STEPS], [s.ours for s in STEPS]), strict=True
    ):
        parts.append(f'<text x="4" y="{y + 19}">{name}</text>')
        parts.append(
            f'<line class="row" x1="{LEFT}" y1="{y + 14}" x2="{at}" y2="{y + 14}"/>'
        )
        parts += [
            f'<rect class="held" x="{start}" y="{y}" width="{width}" height="28"/>'
            for start, width in _spans(held)
        ]
    parts.append('<text x="4" y="53">the request</text>')
    parts.append(
        f'<rect class="held" x="{LEFT}" y="189" width="14" height="12"/>'
        f'<text x="{LEFT + 20}" y="199">the thread has a connection</text>'
        f'<line class="row" x1="{LEFT + 230}" y1="195" x2="{LEFT + 260}" y2="195"/>'
        f'<text x="{LEFT + 268}" y="199">'
        "all connections are in the pool</text>"
    )
    body = "\n  ".join(parts)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" class="request" viewBox="0 0 {WIDTH} {HEIGHT}" \
role="img" aria-labelledby="request-title request-description">
  <title id="request-title">One request with the stock backend and with this library</title>
  <desc id="request-description">{escape(_description())}</desc>
  <style>
{STYLE}
  </style>
  {body}
</svg>
"""


def _spans(held: list[bool]) -> list[tuple[int, int]]:
    """Return start and width of each run of steps in which a connection is held."""
    spans: list[tuple[int, int]] = []
    at = LEFT
    for step, is_held in zip(STEPS, held, strict=True):
        if is_held:
            if spans and sum(spans[-1]) == at:
                spans[-1] = (spans[-1][0], spans[-1][1] + step.width)
            else:
                spans.append((at, step.width))
        at += step.width
    return spans


def _description() -> str:
    held = {
        "stock": [" ".join(step.label) for step in STEPS if step.stock],
        "this library": [" ".join(step.label) for step in STEPS if step.ours],
    }
    sentences = [
        f"With {name} the thread has a connection during: {'; '.join(labels)}."
        for name, labels in held.items()
    ]
    return " ".join(sentences)


if __name__ == "__main__":
    SVG.write_text(draw(), encoding="utf-8")
