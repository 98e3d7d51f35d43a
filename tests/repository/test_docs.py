"""The documentation says what is so: its code runs, its tables are the package's own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain
from operator import mul
from pathlib import Path
from threading import Thread
from typing import Any, get_args
from weakref import ref

import pytest
from demo.themes import THEMES, Theme
from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, OperationalError, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper as StockWrapper
from django.db.utils import ConnectionHandler
from docs_scripts import load
from helpers import backend_pid, installed, pool_of_one, run_in_thread, wait_until
from items import Item
from places import CHECKOUT, DOCS
from psycopg_pool import ConnectionPool
from second_server import free_port
from settings import DATABASES, STOCK_OF
from small_pooler import pooler_of_transactions
from traffic import warm_up
from watching import watching

import django_pg_real_pool
from django_pg_real_pool import (
    ConnectionHeldError,
    assert_released,
    make_release_backend,
    observers,
    pin_connection,
    pool_status,
    reset_peaks,
    testing,
)
from django_pg_real_pool._lease.facts import MOVES, Debt, Phase, Transaction, Use
from django_pg_real_pool._lease.rule import TABLE, Event, Hold
from django_pg_real_pool._pool_settings import native_problems, queue_problems, refuse
from django_pg_real_pool._pools.real_pool import RealPool
from django_pg_real_pool._process import greenlets
from django_pg_real_pool._settings import WARN_UNCLOSED_CURSORS, ReleaseOptions
from django_pg_real_pool.contrib import metrics

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings along there

ROOT = CHECKOUT

#: Longer than any page takes, and shorter than a reader's patience.
PAGE_TIMEOUT = 60


run_page = load("run_page")
draw_request = load("draw_request")
draw_rooms = load("draw_rooms")

PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for page in DOCS.rglob("*.md")
    if "_build" not in page.parts
)
#: Which begins with no project at all: `nox -s tutorial` follows it, word for word.
TUTORIAL = "tutorial/first-pool.md"
#: Pages with code, of this project's users that is: the others have nothing to run.
PAGES_WITH_CODE = [
    page
    for page in PAGES
    if page != TUTORIAL
    and {"python", "pycon"} & {block.language for block in run_page.blocks_of(DOCS / page)}
]


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def table_of(page: str, *columns: str) -> list[list[str]]:
    """Return the rows of the one table on a page that has these columns."""
    lines = text_of(page).splitlines()
    head = f"| {' | '.join(columns)} |"
    assert lines.count(head) == 1, f"{page} has no table, or many, with the head {head}"
    rows = []
    for line in lines[lines.index(head) + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def wrapper_with(alias: str = "default", **settings: Any) -> Any:
    """Return a new wrapper, outside of `django.db.connections`."""
    database = {**DATABASES["native"], **settings}
    return ConnectionHandler({"default": database, alias: database})[alias]


# ##### Code #####


#: The psycopg that a page says its code needs, where that is not the lowest allowed.
NEEDS_PSYCOPG = {"how-to/advisory-locks-and-listen.md": "3.2"}


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    page: str, tmp_path: Path
) -> None:
    if page in NEEDS_PSYCOPG:
        assert f"psycopg {NEEDS_PSYCOPG[page]}" in text_of(page)
        pytest.importorskip("psycopg", NEEDS_PSYCOPG[page])
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(DOCS / "run_page.py"), page],
        cwd=tmp_path,  # not the checkout: what is installed is what is meant
        capture_output=True,
        text=True,
        timeout=PAGE_TIMEOUT,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    """So that no Python is passed over by the test above because of a typing error."""
    run, shown = {"python", "pycon"}, {"console", "text"}
    directives = {"{glossary}", "{raw}", "{py:module}", "{py:function}", "{py:exception}"}
    languages = {block.language for block in run_page.blocks_of(DOCS / page)}
    directives |= {"{py:class}", "{image}", "{literalinclude}"}
    assert languages <= run | shown | directives


def test_the_fixture_for_tests_finds_a_held_connection(tmp_path: Path) -> None:
    """The page's conftest.py, with tests that are right and one that is not."""
    blocks = list(run_page.blocks_of(DOCS / "how-to/find-held-connections.md"))
    run_page.make_project(blocks, tmp_path)
    (tmp_path / "test_shop.py").write_text(
        """
import pytest
from django.db import connection, transaction
from django.test import TestCase
from shop.models import Item

class InATransaction(TestCase):
    def test_query(self):
        assert Item.objects.count() == 0

@pytest.mark.django_db
def test_in_a_transaction():
    assert Item.objects.count() == 0

@pytest.mark.django_db(transaction=True)
def test_released():
    with transaction.atomic():
        assert Item.objects.count() == 0

@pytest.mark.django_db(transaction=True)
def test_held():
    connection.ensure_connection()
""",
        encoding="utf-8",
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "settings"},
        capture_output=True,
        text=True,
        timeout=PAGE_TIMEOUT,
        check=False,
    )
    assert re.search(r"^4 passed, 1 error ", ran.stdout, re.MULTILINE), ran.stdout
    assert "ERROR test_shop.py::test_held - " in ran.stdout
    assert "held for alias 'default' by explicit connect" in ran.stdout


FOUND = """\
connections[using].connection.adapters.register(x)
raw = connection.connection
self.connection.connection.info
if conn.connection is None:
connection.ensure_connection()
from django.db.backends.signals import connection_created
cursor.execute("SELECT pg_backend_pid()")
"""
NOT_FOUND = """\
cursor.connection.info
with schema_editor.connection.cursor() as cursor:
self.connection.cursor()
connections[using].cursor()
connector.connection_info
conn.connection()
"""


def test_the_search_for_connections_finds_what_the_page_says(tmp_path: Path) -> None:
    blocks = run_page.blocks_of(DOCS / "how-to/adopt.md")
    greps = [
        line.removeprefix("$ ")
        for block in blocks
        for line in block.code.splitlines()
        if line.startswith("$ grep ")
    ]
    assert len(greps) == 2
    for package in ("a_package", "django", "a_package/tests"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a_module.py").write_text(FOUND + NOT_FOUND, "utf-8")
    found = [
        line.partition(":")[::2]
        for grep in greps
        for line in subprocess.run(
            ["sh", "-c", grep], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    ]
    assert {file for file, _ in found} == {"./a_package/a_module.py"}
    lines = [line.partition(":")[2] for _, line in found]
    assert lines == FOUND.splitlines()


# ##### When a connection is held #####

HELD = "explanation/when-a-connection-is-held.md"


def test_the_table_of_holds_has_each_hold() -> None:
    rows = table_of(HELD, "hold", "begins", "ends")
    assert [row[0] for row in rows] == [hold.value for hold in Hold]


def test_the_table_of_events_is_the_table_in_the_code() -> None:
    rows = table_of(HELD, "event", "begins", "ends")
    documented = {event: (begins, ends) for event, begins, ends in rows}
    assert documented == {
        event.value: (
            transition.begins.value if transition.begins else "",
            ", ".join(hold.value for hold in transition.ends),
        )
        for event, transition in TABLE.items()
    }
    assert [row[0] for row in rows] == [event.value for event in Event]


def held_in_each_step(alias: str) -> dict[str, bool]:
    """Run the request of the picture; say in which steps there was a connection."""
    wrapper = connections[alias]
    wrapper.close()
    held: dict[str, bool] = {}
    items = Item.objects.using(alias)

    def note(step: str) -> None:
        held[step] = held.get(step, True) and wrapper.connection is not None

    def while_executing(step: str) -> Any:
        def execute_noting(execute: Callable[..., Any], *arguments: Any) -> Any:
            note(step)
            return execute(*arguments)

        return wrapper.execute_wrapper(execute_noting)

    note("routing, session")
    with while_executing("query"):
        assert items.count() == 0
    note("call to an API")
    with transaction.atomic(alias):
        note("atomic(): compute")
        with while_executing("insert, update, COMMIT"):
            items.create(name=alias)
            items.update(name=alias.upper())
        transaction.on_commit(lambda: note("on_commit(): send mail"), using=alias)
    note("render, send")
    items.all().delete()
    wrapper.close()
    return held


def test_the_picture_shows_what_a_request_does(alias: str) -> None:
    steps = draw_request.STEPS
    assert held_in_each_step(STOCK_OF[alias]) == {
        " ".join(step.label): step.stock for step in steps
    }
    assert held_in_each_step(alias) == {" ".join(step.label): step.ours for step in steps}


def test_the_picture_is_drawn_from_those_steps() -> None:
    assert draw_request.SVG.read_text(encoding="utf-8") == draw_request.draw()


# ##### How the class is made #####

MADE = "explanation/how-the-class-is-made.md"
#: What is installed, which need not be the checkout.
PACKAGE = Path(django_pg_real_pool.__file__).parent


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, as WCAG defines it: 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [
            p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        ]
        return float(sum(map(mul, (0.2126, 0.7152, 0.0722), linear)))

    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_what_is_written_in_a_picture_can_be_read(theme: Theme) -> None:
    """Also on a bar, whose number has the colour of the background."""
    for colour in (theme.ink, theme.soft, theme.stock, theme.ours):
        assert contrast(colour, theme.background) >= 4.5


def test_the_picture_of_the_rooms_is_drawn_from_the_imports() -> None:
    drawn = draw_rooms.draw(PACKAGE)
    assert draw_rooms.SVG.read_text(encoding="utf-8") == drawn


def test_the_picture_has_each_room_and_its_arrows_point_down() -> None:
    rooms, arrows = list(draw_rooms.ROOMS), draw_rooms.arrows(PACKAGE)
    assert set(arrows) == set(rooms)
    for room, imported in arrows.items():
        assert imported <= set(rooms[rooms.index(room) + 1 :]), room
    assert arrows["front doors"] >= {"_backend"}
    assert arrows["_lease"] >= {"_session", "_drivers", "_process"}


def test_the_table_of_rooms_is_that_of_the_picture() -> None:
    rows = table_of(MADE, "room", "what it does", "does not know")
    assert [room.strip("`") for room, *_ in rows] == list(draw_rooms.ROOMS)


def test_the_facts_are_those_in_the_code() -> None:
    words = {
        fact: [row[0] for row in table_of(MADE, fact, *columns)]
        for fact, columns in {
            "use": ("meaning",),
            "phase": ("meaning", "may become"),
            "transaction": ("meaning",),
            "debt": ("paid by",),
        }.items()
    }
    assert words == {
        "use": [each.value for each in Use],
        "phase": [each.value for each in Phase],
        "transaction": [each.value for each in Transaction],
        "debt": [each.name.lower() for each in Debt],
    }


def test_the_moves_from_phase_to_phase_are_those_in_the_code() -> None:
    rows = table_of(MADE, "phase", "meaning", "may become")
    assert {phase: may_become.split(", ") for phase, _, may_become in rows} == {
        before.value: [after.value for after in Phase if after in MOVES[before]]
        for before in Phase
    }


def test_a_query_goes_the_way_of_the_page() -> None:
    """The calls of one query, among others, are those of the table, in its order."""
    rows = table_of(MADE, "file", "function", "what it does")
    walk = [(file.strip("`"), function.strip("`")) for file, function, _ in rows]
    files = {str(PACKAGE / file): file for file, _ in walk}
    items = Item.objects.using("default")
    items.count()  # a connection is idle now, and set up for this session
    calls: list[tuple[str, str]] = []

    def note(frame: types.FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename in files:
            calls.append((files[frame.f_code.co_filename], frame.f_code.co_name))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        items.count()
    finally:
        sys.setprofile(before)
    remaining = iter(calls)
    assert [step for step in walk if step not in remaining] == []


def test_what_a_contributor_looks_for_is_where_the_page_says() -> None:
    for _, file, function in table_of("contributing.md", "where", "file", "function"):
        source = (PACKAGE / file.strip("`")).read_text(encoding="utf-8")
        assert re.search(rf"\bdef {function.strip('`')}\(", source), (file, function)


def test_the_page_lists_what_the_pool_overrides() -> None:
    overridden = {
        name
        for name, value in vars(RealPool).items()
        if callable(value) and hasattr(ConnectionPool, name) and name[:2] != "__"
    }
    rows = table_of(MADE, "method", "why")
    assert {method.strip("`") for method, _ in rows} == overridden


# ##### Reference #####


def test_the_api_page_has_each_public_name_with_its_arguments() -> None:
    page, _, kit = text_of("reference/api.md").partition("## Testing")
    names = [name for name, _ in signatures(page)]
    assert sorted(names) == sorted(django_pg_real_pool.__all__)
    for module, text in ((django_pg_real_pool, page), (testing, kit)):
        for name, arguments in signatures(text):
            thing = getattr(module, name)
            if not arguments:
                assert isinstance(thing, type)  # not to be called by users
                continue
            namespace: dict[str, Any] = {}
            code = f"from __future__ import annotations\ndef it{arguments}: ..."
            exec(code, namespace)  # noqa: S102 - of our own page
            assert defaults(namespace["it"]) == defaults(thing)


def test_the_page_of_observers_has_each_event_and_each_attribute() -> None:
    page = "reference/observers.md"
    found = signatures(text_of(page))
    assert {name for name, _ in found} == {*observers.__all__} - {"Closing"}
    for name, arguments in found:
        if arguments:
            namespace: dict[str, Any] = {}
            code = f"from __future__ import annotations\ndef it{arguments}: ..."
            exec(code, namespace)  # noqa: S102 - of our own page
            assert defaults(namespace["it"]) == defaults(getattr(observers, name))
    events = {
        f"`{name}({', '.join([*inspect.signature(method).parameters][1:])})`"
        for name, method in vars(observers.Observer).items()
        if name[0] != "_"
    }
    assert {event for event, _ in table_of(page, "method", "what has happened")} == events
    attributes = {*observers.Lease.__slots__, *vars(observers.Lease)}
    rows = table_of(page, "attribute", "meaning")
    assert {name.strip("`") for row in rows for name in row[0].split(", ")} == {
        name for name in attributes if name[0] != "_"
    }
    text = text_of(page)
    assert all(f'`"{why}"`' in text for why in get_args(observers.Closing))
    assert all(f'`"{name}"`' in text for name in get_args(observers.HoldName))


#: Metrics in Prometheus, as the page has them.
EXPORTED = {
    name.strip("`"): kind
    for _, name, kind, _ in table_of(
        "reference/metrics.md", "metric", "in Prometheus", "kind", "unit"
    )
}


def test_the_page_of_metrics_has_each_metric_and_each_attribute() -> None:
    rows = table_of("reference/metrics.md", "metric", "in Prometheus", "kind", "unit")
    ours = [*metrics.OF_CENSUS, metrics.TIMEOUTS, *metrics.HISTOGRAMS]
    assert [row[0].strip("`") for row in rows] == [
        metrics.PREFIX + each.name for each in ours
    ]
    units = {"s": "seconds", **{f"{{{each[:-1]}}}": each for each in UNITS}}
    assert [row[3] for row in rows] == [units[each.unit] for each in ours]
    of_attributes = table_of(
        "reference/metrics.md", "attribute", "in Prometheus", "of", "values"
    )
    assert [row[0].strip("`") for row in of_attributes] == [
        *(metrics.POOL, metrics.STATE, metrics.HOLD)
    ]
    values = ", ".join(f"`{name}`" for name in get_args(observers.HoldName))
    assert of_attributes[2][3] == values
    for each in ours:
        assert (
            f"`{each.name}`" in text_of("reference/metrics.md").partition("## What each")[2]
        )


UNITS = ("connections", "requests", "timeouts")


def names_in(expression: str) -> set[str]:
    """Return the metrics of an expression, without what a histogram's samples end in."""
    suffixes = r"(?<=_seconds)_(?:bucket|count|sum)$"
    found = re.findall(r"\bdb_client_connection_\w+", expression)
    labels = {"db_client_connection_pool_name", "db_client_connection_state"}
    return {re.sub(suffixes, "", name) for name in found} - labels


def test_the_alerts_are_about_what_is_exported() -> None:
    text = (DOCS / "_static" / "pool-alerts.yml").read_text(encoding="utf-8")
    rules = re.findall(
        r"- alert: (\w+)\n\s+expr:(.+?)\n\s+(?:for|labels):", text, re.DOTALL
    )
    rows = table_of("how-to/watch-the-pool.md", "alert", "what to do")
    assert [name for name, _ in rules] == [name.strip("`") for name, _ in rows]
    assert len(rules) == 4
    for _, expression in rules:
        assert names_in(expression)
        assert names_in(expression) <= {*EXPORTED}


def test_the_dashboard_is_about_what_is_exported() -> None:
    """Each metric is on it."""
    board = json.loads((DOCS / "_static" / "pool-dashboard.json").read_text("utf-8"))
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert set().union(*map(names_in, shown)) == {*EXPORTED}
    asked = [each["query"] for each in board["templating"]["list"]]
    assert set().union(*map(names_in, asked)) <= {*EXPORTED}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def signatures(text: str) -> list[tuple[str, str]]:
    return re.findall(
        r"^```\{py:(?:function|exception|class)\} (\w+)(?:(\(.*\)).*)?$", text, re.MULTILINE
    )


def defaults(thing: Callable[..., Any]) -> list[tuple[str, Any]]:
    parameters = inspect.signature(thing).parameters.values()
    return [(each.name, each.default) for each in parameters]


def test_the_settings_page_has_each_option_with_its_default() -> None:
    """P4: the options of `RELEASE_OPTIONS`."""
    rows = table_of("reference/settings.md", "key", "default", "meaning")
    assert {key.strip("`"): default.strip("`") for key, default, _ in rows} == {
        name.upper(): repr(getattr(default, "value", default))
        for name, default in vars(ReleaseOptions()).items()
    }


def test_the_settings_page_has_the_defaults_of_the_other_pool() -> None:
    from dj_db_conn_pool.core import pool_container

    rows = table_of("reference/settings.md", "key", "default")
    assert {key.strip("`"): default.strip("`") for key, default in rows} == {
        name.upper(): str(default)
        for name, default in pool_container.pool_default_params.items()
    }


def test_the_pages_name_the_environment_variable_as_it_is() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(r"\bDJANGO_PG_REAL_POOL_\w+", text_of(page))
    }
    assert named == {WARN_UNCLOSED_CURSORS}


def test_the_page_of_checks_has_each_check_as_it_is_printed() -> None:
    on_psycopg2 = wrapper_with()
    on_psycopg2.Database = types.ModuleType("psycopg2")
    with_queue: dict[str, Any] = {
        "ENGINE": "django_pg_real_pool.dj_db_conn_pool",
        "OPTIONS": {},
    }
    found = [
        check
        for wrapper in (
            wrapper_with(OPTIONS={}),
            wrapper_with(CONN_MAX_AGE=60),
            on_psycopg2,
            wrapper_with(RELEASE_OPTIONS={"TRACK_ORIGIN": True}),
            wrapper_with(OPTIONS={"pool": "yes"}),
            wrapper_with(OPTIONS={"pool": {"max_sise": 10}}),
            wrapper_with(OPTIONS={"pool": {"max_size": 2}}),
        )
        for check in wrapper.validation.check()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "psycopg_pool", None)
        found += wrapper_with().validation.check()
    found += wrapper_with(OPTIONS={"pool": True, "RELEASE_OPTIONS": {}}).validation.check()
    found += wrapper_with(**with_queue, POOL_OPTIONS={"pool_size": 3}).validation.check()
    with patched_late():
        found += wrapper_with().validation.check()
    with pooler_of_transactions() as port:
        behind = wrapper_with(
            HOST="127.0.0.1",
            PORT=str(port),
            OPTIONS={
                "pool": True,
                "sslmode": "disable",
                "prepare_threshold": 5,
                "server_side_binding": True,
                "assume_role": "shop",
                "options": "-c work_mem=7MB",
            },
        )
        found += behind.validation.check()
    for each in wrapper_with(OPTIONS={"pool": {"max_size": 5000}}).validation.check():
        # The server's own figures are another's in a moment.
        each.msg = re.sub(r"allows \d+, (.*) \d+ now", r"allows 97, \1 12 now", each.msg)
        found.append(each)
    for each in wrapper_with(HOST="127.0.0.1", PORT=str(free_port())).validation.check():
        # psycopg 3.1 leaves out which server it was.
        server = 'connection to server at "127.0.0.1", port 5432 failed: '
        reason = re.sub(r"connect: (?:connection .* port \d+ failed: )?", "", each.msg)
        each.msg = reason.replace("can't ", f"can't connect: {server}")
        found.append(each)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django_pg_real_pool._backend.checks.blocks_greenlets", lambda: True)
        found += wrapper_with().validation.check()
    page = text_of("reference/checks.md")
    assert [f"## `{check.id}`" for check in found] == re.findall(
        "^## .*", page, re.MULTILINE
    )
    for check in found:
        assert f"```text\n{check}\n```\n" in page


def test_the_versions_are_those_of_the_package() -> None:
    page = "reference/compatibility.md"
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]
    rows = {
        django: pythons.split(", ")
        for django, pythons in table_of(page, "Django", "Python")
    }
    assert rows == pyproject["tool"]["django-pg-real-pool"]["matrix"]
    classified = [
        *(f"Framework :: Django :: {django}" for django in rows),
        *(
            f"Programming Language :: Python :: {each}"
            for row in rows.values()
            for each in row
        ),
    ]
    assert set(classified) == {
        each for each in project["classifiers"] if re.search(r":: \d+\.\d+$", each)
    }
    required = re.findall(
        r"([\w-]+)(?:\[\w+\])?>=([\d.]+)",
        " ".join(
            chain(project["dependencies"], *project["optional-dependencies"].values())
        ),
    )
    assert {
        name.lower(): version.removesuffix(" or newer")
        for name, version, _ in table_of(page, "package", "version", "for")
    } == {name.lower(): version for name, version in required if name.lower() != "django"}


# ##### Errors #####


def _held() -> None:
    with transaction.atomic("default"):
        backend_pid("default")
        assert_released("default")


def _other_backend() -> None:
    with installed("default", StockWrapper):
        assert_released("default")


def _no_extra() -> None:
    name = "dj_db_conn_pool.backends.postgresql.base"
    engine = "django_pg_real_pool.dj_db_conn_pool.base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, None)
        patch.delitem(sys.modules, engine, raising=False)
        importlib.import_module(engine)


def _no_pool_of_psycopg() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "psycopg_pool", None)
        _native_refused(True)


def _native_refused(pool: Any) -> None:
    refuse("default", native_problems("default", {"OPTIONS": {"pool": pool}}))


def _queue_refused() -> None:
    refuse("default", queue_problems("default", {"POOL_OPTIONS": {"pool_size": 3}}))


def _misspelt_engine() -> None:
    settings = {**DATABASES["native"], "ENGINE": "django_pg_realpool"}
    connection = ConnectionHandler({"default": settings})["default"]
    raise AssertionError(f"{connection} was made")


def _no_driver() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for driver in ("psycopg", "psycopg2"):
            patch.setitem(sys.modules, driver, None)
        for module in ("psycopg_any", "base"):
            patch.delitem(sys.modules, f"django.db.backends.postgresql.{module}")
        importlib.import_module("django.db.backends.postgresql.base")


def _cursor_open_at_close() -> None:
    wrapper = connections["default"]
    with wrapper.cursor() as cursor:
        wrapper.close()
        cursor.execute("SELECT 1")


def _taken_away() -> None:
    wrapper = connections["default"]
    with transaction.atomic("default"):
        backend_pid("default")
        physical, wrapper.connection = wrapper.connection, None
        try:
            backend_pid("default")
        finally:
            physical.close()


def _killed_in_atomic() -> None:
    with transaction.atomic("default"), connections["default"].cursor() as cursor:
        with suppress(OperationalError):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        backend_pid("default")


def _exhausted(alias: str) -> None:
    with pin_connection(alias):
        run_in_thread(lambda: backend_pid(alias))


def _nobody_listens() -> None:
    wrapper = wrapper_with("never", HOST="127.0.0.1", PORT=str(free_port()))
    try:
        wrapper.cursor()
    finally:
        wrapper.close_pool()  # which would try again, and log that, in tests to come


@contextmanager
def patched_late() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greenlets, "_DJANGO_WAS_EARLIER", True)
        yield


def _patched_late() -> None:
    with patched_late():
        wrapper_with().cursor()


def _refused() -> None:
    options, engine = {"SESSION_STATE": "error"}, type(wrapper_with())
    with (
        installed("default", engine, RELEASE_OPTIONS=options) as wrapper,
        wrapper.cursor() as cursor,
    ):
        cursor.execute("LISTEN news")


def _status_of_other_backend() -> None:
    with installed("default", StockWrapper):
        pool_status("default")


def _without(missing: str, import_it: Callable[[], object]) -> None:
    """Import something where a package is missing."""
    before = sys.modules.copy()
    sys.modules[missing] = None  # type: ignore[assignment]
    sys.modules.pop("django_pg_real_pool.contrib.opentelemetry", None)
    try:
        import_it()
    finally:
        sys.modules.clear()
        sys.modules.update(before)


def _no_prometheus() -> None:
    config = AppConfig.create("django_pg_real_pool.contrib.prometheus")
    _without("prometheus_client", config.ready)


def _no_opentelemetry() -> None:
    name = "django_pg_real_pool.contrib.opentelemetry"
    _without("opentelemetry.metrics", lambda: import_module(name))


def _closed_in_atomic() -> None:
    with transaction.atomic("default"):
        connections["default"].close()
        backend_pid("default")


#: What raises, for each heading of the page, which is told by its beginning.
RAISED: list[tuple[str, Callable[[], Any]]] = [
    ("No connection pool is configured", lambda: wrapper_with(OPTIONS={}).cursor()),
    ('ENGINE = "django_pg_real_pool.dj_db_conn_pool" needs', _no_extra),
    (
        "DATABASES['default']['RELEASE_OPTIONS']: unknown option",
        lambda: wrapper_with(RELEASE_OPTIONS={"TRACK_ORIGIN": True}).cursor(),
    ),
    (
        "DATABASES['default']['RELEASE_OPTIONS']: TRACK_ORIGINS must be",
        lambda: wrapper_with(RELEASE_OPTIONS={"TRACK_ORIGINS": 1}).cursor(),
    ),
    (
        "DATABASES['default']['RELEASE_OPTIONS']: expected a dict",
        lambda: wrapper_with(RELEASE_OPTIONS=True).cursor(),
    ),
    (
        "DATABASES['default']: RELEASE_OPTIONS is in OPTIONS",
        lambda: wrapper_with(OPTIONS={"pool": True, "RELEASE_OPTIONS": {}}).cursor(),
    ),
    ("Database 'default': OPTIONS[\"pool\"] must be", lambda: _native_refused("yes")),
    (
        "Database 'default': unknown option 'max_sise'",
        lambda: _native_refused({"max_sise": 2}),
    ),
    ("Database 'default': max_size is 2", lambda: _native_refused({"max_size": 2})),
    ("Database 'default': the native pool needs psycopg_pool", _no_pool_of_psycopg),
    ("Database 'default': unknown option 'pool_size'", _queue_refused),
    ("Python was patched, by gevent or eventlet", _patched_late),
    (
        "make_release_backend() needs a Django",
        lambda: make_release_backend(3),  # type: ignore[arg-type]
    ),
    ("a connection is held for alias", _held),
    ("assert_released() can't answer", _other_backend),
    ("the cursor can't be used any more", _cursor_open_at_close),
    ("the connection of database alias 'default' is lost", _taken_away),
    ("the connection is closed", _killed_in_atomic),
    ("LISTEN would change the session", _refused),
    ("couldn't get a connection", lambda: _exhausted("brief_native")),
    ("couldn't get a connection", lambda: _exhausted("brief_dj")),
    ("pool_status() can't answer", _status_of_other_backend),
    ("reset_peaks() can't answer", lambda: reset_peaks("stock_native")),
    ("django_pg_real_pool.contrib.prometheus needs", _no_prometheus),
    ("django_pg_real_pool.contrib.opentelemetry needs", _no_opentelemetry),
    ("connection failed:", _nobody_listens),
    ("Pooling doesn't support", lambda: wrapper_with("aged", CONN_MAX_AGE=60).cursor()),
    ("'django_pg_realpool' isn't an available", _misspelt_engine),
    ("Error loading psycopg2 or psycopg", _no_driver),
    ("Cannot open a new connection", _closed_in_atomic),
]


def _dropped_cursor(_: Any) -> None:
    connections["default"].cursor()
    with pytest.warns(ResourceWarning) as warned:
        backend_pid("default")
    assert documented("a cursor on database alias").match(str(warned[0].message))


def _given_back_twice(_: Any) -> None:
    wrapper: Any = connections["default"]
    with wrapper.cursor():
        wrapper.pool.putconn(wrapper.connection)  # so the wrapper's own checkin fails


def _killed_before_cleaning(observer: Any) -> None:
    with pin_connection("default"):
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [backend_pid("default")])


def _held_long(_: Any) -> None:
    options = {"WARN_HELD_AFTER": 0}
    with installed("default", type(wrapper_with()), RELEASE_OPTIONS=options):
        backend_pid("default")


def _thread_dies(_: Any) -> None:
    thread = Thread(target=lambda: connections["default"].ensure_connection())
    thread.start()
    thread.join()


def _killed_while_idle(observer: Any) -> None:
    warm_up("default")
    pool: Any = connections["default"].pool  # type: ignore[attr-defined]
    for pid in [each.info.backend_pid for each in list(pool._pool)]:
        observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    backend_pid("default")


def _pool_of_a_subclass(_: Any) -> None:
    class Pool(ConnectionPool[Any]):
        """Whatever it may do."""

    assert not RealPool.adopt(Pool(open=False))


class _Loses:
    """A borrower that has lost what it was lent."""

    def has_lost(self, connection: Any) -> bool:
        return True


def _interrupted(_: Any) -> None:
    backend_pid("default")
    wrapper: Any = connections["default"]
    borrower, pool = _Loses(), wrapper.pool
    pool.getconn(None, ref(borrower))
    pool.reap()


def _observer_raises(_: Any) -> None:
    class Observer(observers.Observer):
        def given_back(self, lease: observers.Lease) -> None:
            raise RuntimeError("oh")

    Observer.given_back.__qualname__ = "Observer.given_back"
    with watching(Observer()):
        backend_pid("default")


#: What makes the log say each of these.
LOGGED: dict[str, Callable[[Any], None]] = {
    "a cursor on database alias": _dropped_cursor,
    "could not give the connection of": _given_back_twice,
    "could not reset the session": _killed_before_cleaning,
    "a connection of database alias 'default' was held": _held_long,
    "a wrapper of database alias 'default' belongs": _thread_dies,
    "a connection of database alias 'default' was closed": _killed_while_idle,
    "pool 'pool-1' is of a class or version": _pool_of_a_subclass,
    "a thread was interrupted while it got": _interrupted,
    "Observer.given_back() has raised": _observer_raises,
}

MESSAGES = re.findall(r"^### `(.*)`$", text_of("reference/errors.md"), re.MULTILINE)


def documented(beginning: str) -> re.Pattern[str]:
    """Return a pattern for the one message on the page that begins so.

    An alias, a thread and a number in it are examples: others will do.
    """
    (message,) = [each for each in MESSAGES if each.startswith(beginning)]
    pattern = re.sub(r"'default'|'worker\\-1'|'pool\\-1'", r"'.+'", re.escape(message))
    return re.compile(re.sub(r"\d+(\\\.\d+)?", r"\\d+(\\.\\d+)?", pattern))


def test_the_page_of_errors_has_no_message_that_is_not_tested() -> None:
    tested = {*(beginning for beginning, _ in RAISED), *LOGGED}
    assert all(any(each.startswith(begin) for begin in tested) for each in MESSAGES)
    assert len(MESSAGES) == len(tested)


@pytest.mark.parametrize(("beginning", "fail"), RAISED)
def test_an_error_reads_as_the_page_says(beginning: str, fail: Callable[[], Any]) -> None:
    with pytest.raises((Error, ImproperlyConfigured, TypeError)) as raised:
        fail()
    assert documented(beginning).match(str(raised.value))


@pytest.mark.parametrize("beginning", LOGGED)
def test_the_log_reads_as_the_page_says(
    beginning: str,
    observer: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(WARN_UNCLOSED_CURSORS, "1")
    message = documented(beginning)
    with caplog.at_level("INFO", "django_pg_real_pool"):
        LOGGED[beginning](observer)
        wait_until(
            lambda: any(
                record.name == "django_pg_real_pool" and message.match(record.getMessage())
                for record in caplog.records
            ),
            f"{message} is logged, not {caplog.messages}",
        )


def test_the_holds_in_the_error_are_those_on_the_page() -> None:
    page = text_of("reference/errors.md")
    section = page[page.index("a connection is held for alias") :].partition("\n### ")[0]
    explained = re.findall(r"^- \*(.+?)\*: ", section, re.MULTILINE)
    setting = 'the setting "pool": False'
    assert sorted(explained) == sorted([*(hold.value for hold in Hold), setting])
    engine = type(wrapper_with())
    with installed("default", engine, OPTIONS={"pool": False}) as unpooled:
        unpooled.ensure_connection()
        with pytest.raises(ConnectionHeldError, match=f"'default' by {setting}"):
            assert_released()


@pytest.mark.parametrize("statement", ["SELECT setseed(0.5)", "LOAD 'plpgsql'"])
def test_what_no_reset_undoes_is_replaced(statement: str) -> None:
    """S3: as the page on session state says of what can't be cleaned with certainty."""
    with pool_of_one("native"):
        wrapper = connections["native"]
        with wrapper.cursor() as cursor:
            cursor.execute(statement)
        changed = backend_pid("native")
        wrapper.close()
        assert backend_pid("native") != changed


# ##### The whole #####


def test_the_readme_marks_its_pitch_for_the_index() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("<!-- begin-pitch -->") == 1
    assert readme.count("<!-- end-pitch -->") == 1
    assert readme.index("<!-- begin-pitch -->") < readme.index("<!-- end-pitch -->")


def test_the_changelog_begins_with_this_version_or_what_is_unreleased() -> None:
    versions = re.findall(r"^## (.+)$", text_of("changelog.md"), re.MULTILINE)
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    version = re.escape(pyproject["project"]["version"])
    released = versions[1:] if versions[0] == "Unreleased" else versions
    assert re.fullmatch(rf"{version} - \d{{4}}-\d\d-\d\d", released[0])


def test_every_page_is_in_the_index() -> None:
    index = text_of("index.md")
    listed = {f"{line}.md" for line in index.splitlines()}
    assert listed >= set(PAGES) - {"index.md"}
