"""D9: the arrows between the package's modules, read from their source."""

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


def test_the_modules_are_found() -> None:
    """D9: the tests below look at something."""
    assert set(MODULES) > ENGINES
    assert f"{PACKAGE}._lease" in MODULES
    assert Import("django.db", "at once") in set(imports_of(f"{PACKAGE}._api"))
    assert Import(f"{PACKAGE}._factory", "at once") in set(imports_of(f"{PACKAGE}.base"))
    assert "for types only" in {
        each.when for module in MODULES for each in imports_of(module)
    }


def test_the_rule_of_holding_needs_the_standard_library_only() -> None:
    """D9, rule 2 of `_lease`: neither Django nor a driver, nor anything of ours."""
    targets = {each.target.partition(".")[0] for each in imports_of(f"{PACKAGE}._lease")}
    assert targets <= sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_only_an_engine_imports_a_driver_backed_wrapper(module: str) -> None:
    """D9: whoever imports any other module needs no driver for it."""
    eager = {
        each.target
        for each in imports_of(module)
        if each.when == "at once" and is_within(each.target, DRIVER_BACKED)
    }
    assert not eager or module in ENGINES, eager
    wrappers = {
        each.target
        for each in imports_of(module)
        if each.when != "for types only" and each.target.endswith(".base")
    } - {"django.db.backends.base.base"}
    assert not wrappers or module in ENGINES, wrappers


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_an_engine_or_the_front_door(module: str) -> None:
    """D9: the arrows lead from the engines to the factory, and never back."""
    targets = {each.target for each in imports_of(module)}
    assert not targets & (ENGINES | {PACKAGE})


def test_no_import_goes_round_in_a_circle() -> None:
    """D9: each module can be read, and loaded, after those that it imports."""
    arrows = {
        module: {
            each.target
            for each in imports_of(module)
            if each.when == "at once" and each.target in MODULES
        }
        for module in MODULES
    }
    try:
        order = list(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    position = {module: number for number, module in enumerate(order)}
    assert position[f"{PACKAGE}._lease"] < position[f"{PACKAGE}._wrapper"]
    assert position[f"{PACKAGE}._wrapper"] < position[f"{PACKAGE}._factory"]
    assert position[f"{PACKAGE}._factory"] < position[PACKAGE]
