"""D9: the arrows between the package's rooms, read from their source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import django_pg_real_pool

PACKAGE = "django_pg_real_pool"
ROOT = Path(django_pg_real_pool.__file__).parent

#: Where Django looks for `DatabaseWrapper`, so what an ENGINE names.
ENGINES = {
    f"{PACKAGE}.base",
    f"{PACKAGE}.dj_db_conn_pool.base",
    f"{PACKAGE}.postgis.base",
}

#: The front doors: what users import, and the engines.  Nothing imports them, but each
#: other: `__init__` says what `_api` has, and `testing` is for users of both.
DOORS = ENGINES | {
    PACKAGE,
    f"{PACKAGE}._api",
    f"{PACKAGE}.dj_db_conn_pool",
    f"{PACKAGE}.postgis",
    f"{PACKAGE}.testing",
}
OF_DOORS = {PACKAGE: {"_api"}, f"{PACKAGE}.testing": {"_api"}}

#: Each room, with those that it may import: the arrows point down this list.
ARROWS: dict[str, set[str]] = {
    #: With packages of others: each module is imported by who uses it.
    "contrib": {"doors", "_session", "_process", "observers"},
    "doors": {"_backend", "_lease", "_pools", "_process"},
    "_backend": {
        *("_lease", "_session", "_pools", "_drivers", "_process"),
        *("_settings", "_pool_settings"),
    },
    "_lease": {"_session", "_pools", "_drivers", "_process", "_settings", "observers"},
    "_session": set(),
    "_pools": {"_drivers", "_process", "_pool_settings", "observers"},
    #: Public, and not a door: leases and pools tell it what happens.
    "observers": {"_process"},
    "_drivers": {"_process"},
    "_process": set(),
    "_settings": set(),
    "_pool_settings": set(),
}

#: What closes a circle within its room: the driver that fits is found by the default one.
CIRCLES = {(f"{PACKAGE}._drivers", f"{PACKAGE}._drivers.psycopg3")}

#: Modules that need nothing but the standard library, each with what it needs of ours.
PURE: dict[str, set[str]] = {
    f"{PACKAGE}._lease.rule": set(),
    f"{PACKAGE}._lease.facts": set(),
    f"{PACKAGE}._process.locks": set(),
    f"{PACKAGE}.observers": {f"{PACKAGE}._process.locks"},
}

#: The one module of a room that needs a driver at once; so it is imported in functions.
REAL_POOL = f"{PACKAGE}._pools.real_pool"

#: Packages that need a database driver to be installed, or are one.
DRIVERS = ("psycopg", "psycopg2", "psycopg_pool", "sqlalchemy", "dj_db_conn_pool")
DRIVER_BACKED = (
    *DRIVERS,
    "django.db.backends.postgresql",
    "django.contrib.gis",
    "django.contrib.postgres",
)


class Import(NamedTuple):
    """One import statement's target, and when it is carried out."""

    target: str
    when: str  # "at once", "in a function", or "for types only"


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(module: str) -> Iterator[Import]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    yield from _imports_in(ast.parse(path.read_text("utf-8")), package, "at once")


def _imports_in(node: ast.AST, package: str, when: str) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for name in child.names:
                yield Import(name.name, when)
        elif isinstance(child, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) + 1 - child.level]
            base = ".".join(
                [*(start if child.level else []), *filter(None, [child.module])]
            )
            for name in child.names:
                as_module = f"{base}.{name.name}"
                yield Import(as_module if as_module in MODULES else base, when)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for each in child.body:
                yield from _imports_in(ast.Module([each], []), package, "for types only")
            for each in child.orelse:
                yield from _imports_in(ast.Module([each], []), package, when)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _imports_in(child, package, "in a function")
        else:
            yield from _imports_in(child, package, when)


def is_within(target: str, packages: tuple[str, ...]) -> bool:
    return any(target == each or target.startswith(f"{each}.") for each in packages)


def room_of(module: str) -> str:
    return "doors" if module in DOORS else module.split(".")[1]


def test_the_modules_are_found() -> None:
    """D9: the tests below look at something."""
    assert set(MODULES) > DOORS | {*PURE, REAL_POOL}
    assert {room_of(module) for module in MODULES} == {*ARROWS}
    assert Import("django.db", "at once") in set(imports_of(f"{PACKAGE}._api"))
    found = {each for module in MODULES for each in imports_of(module)}
    assert Import(f"{PACKAGE}._backend.factory", "at once") in found
    assert {each.when for each in found} == {
        *("at once", "in a function", "for types only"),
    }


def test_the_arrows_point_down() -> None:
    """D9: a room may import those that stand below it, so none imports itself by a detour."""
    rooms = list(ARROWS)
    for room, below in ARROWS.items():
        assert below <= {*rooms[rooms.index(room) + 1 :]}, room


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_room_but_those_below_its_own(module: str) -> None:
    """D9: for types or in a function, too."""
    room = room_of(module)
    targets = {each.target for each in imports_of(module) if each.target in MODULES}
    if room == "doors":
        doors = {target for target in targets if target in DOORS}
        assert doors <= {f"{PACKAGE}.{name}" for name in OF_DOORS.get(module, ())}
        targets -= doors
    assert {room_of(target) for target in targets} <= {room, *ARROWS[room]}


@pytest.mark.parametrize("room", ARROWS)
def test_each_arrow_is_there(room: str) -> None:
    """D9: what is not imported any more is not to stand in the list."""
    targets = {
        room_of(each.target)
        for module in MODULES
        if room_of(module) == room
        for each in imports_of(module)
        if each.target in MODULES
    }
    assert targets - {room} == ARROWS[room]


@pytest.mark.parametrize("module", PURE)
def test_what_decides_needs_the_standard_library_only(module: str) -> None:
    """D9: neither Django nor a driver, nor anything of ours but the lock."""
    targets = {each.target for each in imports_of(module)} - PURE[module]
    assert {each.partition(".")[0] for each in targets} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_only_an_engine_imports_a_driver_backed_wrapper(module: str) -> None:
    """D9: whoever imports any other module needs no driver for it."""
    eager = {
        each.target
        for each in imports_of(module)
        if each.when == "at once" and is_within(each.target, DRIVER_BACKED)
    }
    assert not eager or module in ENGINES | {REAL_POOL}, eager
    wrappers = {
        each.target
        for each in imports_of(module)
        if each.when != "for types only" and each.target.endswith(".base")
    } - {"django.db.backends.base.base"}
    assert not wrappers or module in ENGINES, wrappers


def test_the_pool_that_needs_a_driver_is_imported_when_it_is_needed() -> None:
    """D9: when there is a pool of that driver's."""
    times = {
        each.when
        for module in MODULES
        for each in imports_of(module)
        if each.target == REAL_POOL
    }
    assert times == {"in a function"}


def test_no_import_goes_round_in_a_circle() -> None:
    """D9: of whatever kind: each module can be read after those that it names."""
    arrows = {
        module: {each.target for each in imports_of(module) if each.target in MODULES}
        for module in MODULES
    }
    for module, target in CIRCLES:
        arrows[module].remove(target)
    try:
        order = list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    assert set(order) == set(MODULES)
