"""Draws `_static/rooms.svg`: the rooms of the package, and which imports which.

The arrows are read from the source; only the rooms' order and what is said of them stand
here.  `tests/repository/test_docs.py` draws it again and compares.  Run this file after an import
between rooms has come or gone.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "django_pg_real_pool"
SVG = DOCS / "_static" / "rooms.svg"

#: Each room from top to bottom, and what it does, in a few words.
ROOMS = {
    "contrib": "integrations with other packages",
    "front doors": "what users import, and the engines",
    "_backend": "translates the calls of Django",
    "_lease": "why there is a connection, and when",
    "_session": "which statements change a session",
    "_pools": "takes, puts back, counts connections",
    "observers": "tells who watches, as metrics do",
    "_drivers": "what a driver knows of a connection",
    "_process": "once per process: locks, reaper, forks",
    "settings": "reads options, refuses wrong ones",
}

#: The modules beside the rooms: what users import ...
DOORS = {"__init__", "_api", "base", "dj_db_conn_pool", "postgis", "testing"}
#: ... and what is read from `DATABASES`.
SETTINGS = {"_settings", "_pool_settings"}

LEFT, TOP = 1, 4
BOX, ROW, GAP = 272, 46, 12
LANE, FIRST_LANE = 20, 30
WIDTH = LEFT + BOX + FIRST_LANE + LANE * (len(ROOMS) - 2) + 8
HEIGHT = TOP + len(ROOMS) * (ROW + GAP) - GAP + 4

#: Each rule names the picture: in a page, its style sheet is the whole page's.
STYLE = """\
    .rooms text { font: 13px sans-serif; fill: var(--color-foreground-primary, #222) }
    .rooms .name { font: bold 14px monospace }
    .rooms rect { fill: none; stroke: var(--color-foreground-muted, #777) }
    .rooms path { fill: none; stroke: #1f6fc4; stroke-width: 1.5 }
    .rooms .head, .rooms circle { fill: #1f6fc4; stroke: none }"""


def room_of(module: tuple[str, ...]) -> str:
    """Return the room of a module, whose dotted path within the package is given."""
    first = module[0]
    if first in DOORS:
        return "front doors"
    return "settings" if first in SETTINGS else first


def arrows(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return, for each room, the rooms that its modules import, for whatever purpose."""
    found: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).with_suffix("").parts
        room = room_of(module)
        targets = {room_of(target) for target in _imports(path, module, package)}
        found.setdefault(room, set()).update(targets - {room})
    return found


def _imports(path: Path, module: tuple[str, ...], package: Path) -> set[tuple[str, ...]]:
    """Return what a module imports of the package; all of it is by relative imports."""
    targets = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = module[: len(module) - node.level]
        base = (*base, *(node.module.split(".") if node.module else ()))
        for each in node.names:
            target = (*base, each.name)
            is_module = package.joinpath(*target).with_suffix(".py").exists()
            is_package = package.joinpath(*target).is_dir()
            targets.add(target if is_module or is_package else base or ("__init__",))
    return targets


def draw(package: Path = PACKAGE) -> str:
    """Return the picture.  Its colours follow the page's theme.

    Each room has a line to its right, and each that is imported a line that comes down to
    it.  Where the two meet for an import, there is a dot.
    """
    names, imports = list(ROOMS), arrows(package)
    parts: list[str] = []
    for number, (name, what) in enumerate(ROOMS.items()):
        y = TOP + number * (ROW + GAP)
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{BOX}" height="{ROW}" rx="4"/>'
            f'<text class="name" x="{LEFT + 9}" y="{y + 19}">{escape(name)}</text>'
            f'<text x="{LEFT + 9}" y="{y + 37}">{escape(what)}</text>'
        )
    for name in names[1:]:
        importers = [each for each in names if name in imports.get(each, ())]
        x, y = _lane(name), _y(name) + 14
        start = min(_y(each) for each in importers) + 32
        parts.append(
            f'<path d="M{x} {start}V{y}H{LEFT + BOX + 7}"/>'
            f'<path class="head" d="M{LEFT + BOX + 1} {y}l9 -4.5v9z"/>'
        )
        parts += [f'<circle cx="{x}" cy="{_y(each) + 32}" r="3.5"/>' for each in importers]
    for name in names:
        if imports.get(name):
            end = max(_lane(each) for each in imports[name])
            parts.append(f'<path d="M{LEFT + BOX} {_y(name) + 32}H{end}"/>')
    body = "\n  ".join(parts)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" class="rooms" viewBox="0 0 {WIDTH} {HEIGHT}" \
role="img" aria-labelledby="rooms-title rooms-description">
  <title id="rooms-title">The rooms of the package, and which imports which</title>
  <desc id="rooms-description">{escape(_description(imports))}</desc>
  <style>
{STYLE}
  </style>
  {body}
</svg>
"""


def _y(name: str) -> int:
    return TOP + list(ROOMS).index(name) * (ROW + GAP)


def _lane(name: str) -> int:
    """Return where the line comes down to a room: the higher it is, the nearer."""
    return LEFT + BOX + FIRST_LANE + LANE * (list(ROOMS).index(name) - 1)


def _description(imports: dict[str, set[str]]) -> str:
    return " ".join(
        f"{name}: {what}; imports "
        + (", ".join(each for each in ROOMS if each in imports.get(name, ())) or "none")
        + "."
        for name, what in ROOMS.items()
    )


if __name__ == "__main__":
    SVG.write_text(draw(), encoding="utf-8")
