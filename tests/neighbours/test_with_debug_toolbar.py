"""django-debug-toolbar, which gives each wrapper a cursor() of its own.

It makes another cursor out of each that a wrapper makes, of a class that it makes then.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync
from debug_toolbar.store import get_store
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.db.backends.signals import connection_created
from django.test import AsyncClient, Client, override_settings
from django.utils import translation
from helpers import (
    DEADLINE,
    backend_pid,
    census,
    forget_pool,
    pool_of_one,
    run_in_thread,
)
from interrupting import Seized
from leases import Stop
from settings import STOCK_OF, UNPOOLED_OF
from side_by_side import same_for_all
from traffic import warm_up

from django_pg_real_pool import (
    AutoConnectionReleaseCursor,
    assert_released,
    observers,
    pin_connection,
)
from django_pg_real_pool.contrib.debug_toolbar import drawing
from django_pg_real_pool.contrib.debug_toolbar.recording import Kept, Recording, current
from django_pg_real_pool.contrib.debug_toolbar.recording import _watchers as watchers
from neighbours import held_pages, settings_debug_toolbar
from neighbours.held_pages import WORK, place
from neighbours.visits import counting_connections, migrated, serve, visit


@pytest.fixture(autouse=True)
def _debugging(alias: str) -> Iterator[None]:
    warm_up(alias)
    with override_settings(DEBUG=True, DEBUG_TOOLBAR_CONFIG={"IS_RUNNING_TESTS": False}):
        yield


def request_id(response: Any) -> str:
    found = re.search(rb'data-request-id="([^"]+)"', response.content)
    assert found, "the page has no toolbar"
    return found[1].decode()


def recorded(response: Any, alias: str) -> list[dict[str, Any]]:
    """Return what the SQL panel has of each query that a page made."""
    panel = get_store().panel(request_id(response), "SQLPanel")
    return [each for each in panel["queries"] if each["alias"] == alias]


def panel(response: Any, name: str) -> str:
    """Ask for a panel of a page as the browser does, and return its HTML."""
    query = {"request_id": request_id(response), "panel_id": name}
    return str(Client().get("/__debug__/render_panel/", query).json()["content"])


# ##### The SQL panel #####


def test_the_panel_has_each_query_as_on_stock(alias: str) -> None:
    """D5: statements, and what belongs to which transaction; after each, a release."""

    def shown(name: str) -> list[Any]:
        return [
            [
                same_for_all(query["raw_sql"]),
                same_for_all(query["sql"]),
                query["trans_status"],
                query["iso_level"],
                *(query.get(key) for key in ("starts_trans", "in_trans", "ends_trans")),
            ]
            for query in recorded(visit(name), name)
        ]

    ours = shown(alias)
    assert ours == shown(STOCK_OF[alias])
    assert sum("SAVEPOINT" in each[0] for each in ours) > 2


def test_the_panel_has_the_queries_of_a_coroutine(alias: str, observer: Any) -> None:
    """R1: whatever thread they run in, each ends in a release there."""

    async def ask(name: str) -> Any:
        return await AsyncClient().get(f"/{name}/async/")

    shown = []
    for name in (alias, STOCK_OF[alias]):
        connections[name].clean_savepoints()
        response = async_to_sync(ask)(name)
        connections[name].close()
        observer.execute("TRUNCATE item RESTART IDENTITY")
        shown.append([same_for_all(each["sql"]) for each in recorded(response, name)])
        if name == alias:
            assert set(json.loads(response["X-Held"]).values()) == {0}
    assert shown[0] == shown[1]
    assert len(shown[0]) == 8


def test_the_panel_is_rendered(alias: str) -> None:
    """D5: what the browser gets when somebody opens the panel."""
    content = panel(visit(alias), "SQLPanel")
    assert f"<strong>Connection:</strong> {alias}" in unescape(content)
    assert "In transaction" in content
    assert census(alias).in_use == 0


@pytest.mark.parametrize("button", ["sql_select", "sql_explain"])
def test_the_panels_buttons_run_the_query_again(
    alias: str, observer: Any, button: str
) -> None:
    """D5: their cursor is one that they keep; R1: its end is a release all the same."""
    content = panel(visit(alias), "SQLPanel")
    observer.execute("INSERT INTO item (name) VALUES ('pen'), ('book'), ('chalk')")
    answers = []
    for row in content.split(' id="sqlMain_')[1:]:
        if not re.search(r'djDebugSql">[^S]*<strong>SELECT', row):
            continue
        signed = re.findall(r'name="signed" value="([^"]+)"', row)[0]
        response = Client().post(f"/__debug__/{button}/", {"signed": unescape(signed)})
        assert response.status_code == 200
        answers.append(response.json()["content"])
        assert connections[alias].connection is None
        assert census(alias).in_use == 0
    assert len(answers) == 3
    assert ("Seq Scan" if button == "sql_explain" else "chalk") in "".join(answers)


def test_a_template_is_rendered_and_its_context_shown(alias: str, observer: Any) -> None:
    """R1: queries while a template is rendered, and while its context is shown."""
    observer.execute("INSERT INTO item (name) VALUES ('pen'), ('book')")
    response = Client().get(f"/{alias}/template/")
    assert b"<p>pen</p><p>book</p>" in response.content
    assert "queryset of items.Item" in panel(response, "TemplatesPanel")
    assert_released(alias)
    assert census(alias).in_use == 0


def test_the_toolbar_keeps_its_records_in_the_database(alias: str) -> None:
    """D1: its store for servers of several processes, which are rows of its table."""
    stored = settings_debug_toolbar.DEBUG_TOOLBAR_CONFIG
    with override_settings(DEBUG_TOOLBAR_CONFIG=stored), migrated(alias):
        queries = recorded(visit(alias), alias)
        assert sum("SAVEPOINT" in each["raw_sql"] for each in queries) > 2
        assert not [each for each in queries if "debug_toolbar" in each["raw_sql"]]
        assert len(list(get_store().request_ids())) == 1
        assert_released(alias)
        assert census(alias).in_use == 0
        get_store().clear()


# ##### What is done once #####


def test_the_wrapper_is_patched_once(alias: str) -> None:
    """The toolbar puts its cursor() on the wrapper, and it stays through all releases."""
    visit(alias)
    patched = [connections[alias].cursor, connections[alias].chunked_cursor]
    for _ in range(3):
        visit(alias)
    assert [connections[alias].cursor, connections[alias].chunked_cursor] == patched


def test_a_page_has_one_connection_announced(alias: str) -> None:
    """D4: not one for each of its queries."""
    with pool_of_one(alias), counting_connections(alias) as announced:
        for number in range(1, 4):
            queries = recorded(visit(alias), alias)
            assert len(announced) == number
            assert len(queries) > 10


def test_no_cursor_class_is_kept(alias: str) -> None:
    """C2: the toolbar makes a class for each cursor; nothing here remembers one."""

    def subclasses(cls: Any) -> int:
        return sum(1 + subclasses(each) for each in cls.__subclasses__())

    counts = []
    for _ in range(3):
        visit(alias)
        gc.collect()
        counts.append(subclasses(AutoConnectionReleaseCursor))
    assert counts[2] == counts[1]


# ##### The panel of our own #####


def see(alias: str, page: str) -> tuple[dict[str, Any], str]:
    """Serve a page; return what our panel has recorded of it, and the panel's HTML."""
    response = serve(f"/{alias}/held/{page}/")
    assert response.status_code == 200
    return leases_of(response)


async def asee(alias: str, page: str) -> tuple[dict[str, Any], str]:
    """The same as an asynchronous server does it: with a thread for each request."""
    async with ThreadSensitiveContext():
        response = await AsyncClient().get(f"/{alias}/held/{page}/")
        assert response.status_code == 200
    return await asyncio.to_thread(leases_of, response)


def leases_of(response: Any) -> tuple[dict[str, Any], str]:
    found = get_store().panel(request_id(response), "LeasesPanel")
    return found, panel(response, "LeasesPanel")


SVG = "{http://www.w3.org/2000/svg}"


class Box:
    """A rectangle of the picture, in shares of the request's time."""

    def __init__(self, element: ElementTree.Element) -> None:
        self.kind, self.colour = element.attrib["class"], element.get("fill")
        self.began, self.width = (
            float(element.attrib[name].removesuffix("%")) / 100 for name in ("x", "width")
        )
        self.title = element.findtext(f"{SVG}title") or ""


def picture(html: str) -> list[Box]:
    """Read the picture, as XML; its rectangles, without those of the background."""
    assert "<script" not in html
    assert "<style" not in html
    assert not re.search(r"\b(style|on\w+)=", html)  # forbidden by a strict policy
    (svg,) = re.findall(r"<svg xmlns.*?</svg>", html, re.DOTALL)
    root = ElementTree.fromstring(svg)
    boxes = [Box(each) for each in root.iter(f"{SVG}rect") if "class" in each.attrib]
    assert all(0 <= each.began <= each.began + each.width <= 1.00001 for each in boxes)
    return [each for each in boxes if each.kind != "base"]


def text(html: str) -> str:
    without_tags = re.sub(r"<(svg|title).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(without_tags).split())


def rows(html: str) -> list[list[str]]:
    """Return the table of lines: where each began, and what it was."""
    table = re.findall(r"<tbody>(.*?)</tbody>", html, re.DOTALL)[0]
    return [
        [text(cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    ]


def short(mark: str, function: str = "order") -> str:
    return place(mark, function).rpartition("/tests/")[2]


@pytest.fixture
def items(observer: Any) -> Iterator[None]:
    observer.execute("INSERT INTO item (name) VALUES ('pen'), ('ink')")
    serve("/native/held/order/")  # the toolbar reads the source of what is on the stack
    yield
    observer.execute("TRUNCATE item RESTART IDENTITY")


@pytest.mark.usefixtures("items")
def test_the_panel_says_which_line_holds_the_connection_longest(alias: str) -> None:
    """As the first thing of all; a transaction explains what the cursors in it do not."""
    stats, html = see(alias, "order")
    assert f"What held it longest is a transaction that began at {short('block')}" in (
        text(html)
    )
    assert "What needs no database can be done before the transaction" in text(html)
    assert [row[:3] for row in rows(html)][:2] == [
        [short("block"), "a transaction", "1"],
        [short("loop"), "a query or open cursor", "1"],
    ]
    holds = [each["holds"] for each in stats["leases"]]
    origins = {hold[3] for each in holds for hold in each}
    assert {place(mark, "order") for mark in ("query", "block", "loop")} <= origins
    assert json.loads(json.dumps(stats)) == stats


@pytest.mark.usefixtures("items")
def test_the_bars_are_as_wide_as_what_they_show_took(alias: str) -> None:
    """In the colours of what held the connection, with a tick for each query."""
    stats, html = see(alias, "order")
    boxes, took = picture(html), stats["took"]
    (block,) = [each for each in boxes if each.kind == "transaction"]
    assert block.width * took >= 2 * WORK
    assert block.colour == drawing.COLOURS["transaction"]
    assert f"began at {place('block', 'order')}" in block.title
    cursors = [each for each in boxes if each.kind == "cursor"]
    assert {each.colour for each in cursors} == {drawing.COLOURS["cursor"]}
    assert cursors[-1].width * took >= WORK
    held = sum(each["time"][1] - each["time"][0] for each in stats["leases"])
    drawn = sum(each.width for each in [block, *cursors]) * took
    assert 3 * WORK < drawn <= held < took - WORK
    assert held - drawn < 0.3 * held  # what taking and giving back took
    queries = [each for each in boxes if each.kind == "query"]
    assert len(queries) == len(stats["queries"]) >= 4
    in_block = [x for x in queries if block.began <= x.began <= block.began + block.width]
    assert len(in_block) >= 1
    assert any("UPDATE" in each.title for each in queries)


@pytest.mark.usefixtures("items")
def test_beneath_djangos_backend_it_shows_what_switching_would_give(alias: str) -> None:
    """How long the connection was kept, and how long that was needed."""
    stats, html = see(STOCK_OF[alias], "order")
    (lease,) = stats["leases"]
    began, ended = lease["time"]
    assert lease["is_out"]
    assert ended == stats["took"]
    boxes = picture(html)
    kept = sum(each.width for each in boxes if each.kind == "nothing") * stats["took"]
    needed = sum(x.width for x in boxes if x.kind in ("transaction", "cursor"))
    needed *= stats["took"]
    assert kept + needed == pytest.approx(ended - began, rel=0.01)
    assert kept >= WORK
    assert needed >= 3 * WORK
    assert f"{stats['engines'][STOCK_OF[alias]]} kept a connection of" in text(html)
    assert f"for the remaining {drawing._ms(kept)[:-5]}" in text(html)
    assert f"needed it longest is a transaction that began at {short('block')}" in (
        text(html)
    )
    needs = {hold[0] for hold in lease["holds"]}
    assert needs == {"transaction", "cursor"}


@pytest.mark.usefixtures("items")
def test_what_djangos_backend_needs_is_what_ours_would_hold(alias: str) -> None:
    """The same lines, for the same reasons."""

    def reasons(name: str) -> set[tuple[str, str]]:
        stats, _ = see(name, "order")
        return {(hold[0], hold[3]) for lease in stats["leases"] for hold in lease["holds"]}

    assert reasons(alias) == reasons(STOCK_OF[alias])


def test_each_hold_has_a_colour(alias: str) -> None:
    _, html = see(alias, "kinds")
    boxes = picture(html)
    kinds = {each.kind for each in boxes} - {"query", "wait"}
    assert kinds == {"cursor", "transaction", "pin", "connect", "session"}
    for each in boxes:
        if each.kind in kinds:
            assert each.colour == drawing.COLOURS[each.kind]
    assert len(set(drawing.COLOURS.values())) == len(kinds) + 1
    for word in ("a transaction", "pin_connection()", "connect()", "a changed session"):
        assert word in text(html)


def test_a_lease_that_lasts_to_the_end_is_explained_all_the_same(alias: str) -> None:
    """It is out still when the panel counts; a changed session ends with the request."""
    for name in (alias, STOCK_OF[alias]):
        stats, html = see(name, "session")
        lease = stats["leases"][-1]
        assert lease["is_out"]
        (hold,) = [each for each in lease["holds"] if each[0] == "session"]
        assert hold[3] == place("set", "session")
        assert hold[2] == lease["time"][1] == stats["took"]
        assert "and still held at the end" in text(html) or "still held" in html
        assert "SET LOCAL" in text(html)
        assert connections[name].connection is None


def test_a_wait_is_hatched(alias: str) -> None:
    """Before the bar, as long as it took until another thread gave the connection back."""
    with pool_of_one(alias):
        has_pinned, may_end = threading.Event(), threading.Event()

        def hold() -> None:
            with pin_connection(alias):
                has_pinned.set()
                may_end.wait(10)

        def begin() -> None:
            other.start()
            has_pinned.wait(10)
            threading.Timer(WORK, may_end.set).start()

        other = threading.Thread(target=run_in_thread, args=(hold,))
        with meanwhile(begin):
            stats, html = see(alias, "waiting")
        other.join()
    (lease,) = stats["leases"]  # the other thread's is not of this request
    assert WORK / 2 < lease["waited"] < stats["took"]
    boxes = picture(html)
    (wait,) = [each for each in boxes if each.kind == "wait"]
    assert wait.colour == "url(#djpgrp-wait)"
    assert 'id="djpgrp-wait"' in html
    assert wait.width * stats["took"] == pytest.approx(lease["waited"], abs=1e-5)
    (bar,) = [each for each in boxes if each.kind == "cursor"]
    assert wait.began + wait.width <= bar.began + 1e-6
    assert "waited for a connection" in text(html)


@contextmanager
def meanwhile(do: Any) -> Iterator[None]:
    """Let the page `waiting` do something of a test's before it queries."""
    held_pages.meanwhile[:] = [do]
    try:
        yield
    finally:
        held_pages.meanwhile.clear()


@contextmanager
def alias_in_a_hurry(of: str) -> Iterator[str]:
    """Let there be an alias with a pool of one connection, which gives up soon."""
    settings = dict(connections.databases[of])
    if "POOL_OPTIONS" in settings:
        settings["POOL_OPTIONS"] = {"POOL_SIZE": 1, "MAX_OVERFLOW": 0, "TIMEOUT": 0.2}
    else:
        settings["OPTIONS"] = {"pool": {"min_size": 1, "max_size": 1, "timeout": 0.2}}
    connections.databases[f"hurried_{of}"] = settings
    try:
        yield f"hurried_{of}"
    finally:
        forget_pool(f"hurried_{of}")
        del connections[f"hurried_{of}"], connections.databases[f"hurried_{of}"]


@pytest.mark.parametrize("of", ["native", "stock_native", "dj", "stock_dj"])
def test_a_wait_for_nothing_is_hatched_too(of: str) -> None:
    """It has no lease; and another thread's is not of this request, nor its wait."""
    with alias_in_a_hurry(of) as name:
        holds, may_end = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic(name):
                backend_pid(name)
                holds.set()
                may_end.wait(10)

        other = threading.Thread(target=run_in_thread, args=(hold,))
        other.start()
        assert holds.wait(10)
        with meanwhile(lambda: run_in_thread(lambda: held_pages.try_to_query(name))):
            stats, html = see(name, "waiting")
        may_end.set()
        other.join()
    assert stats["leases"] == []
    ((waiting, _, began, ended),) = stats["timeouts"]
    assert waiting == name
    assert ended - began > 0.1
    (wait,) = picture(html)
    assert wait.kind == "wait"
    assert "and got none" in wait.title
    assert "This request held no connection" not in html


def test_a_request_without_a_query_is_told_so(alias: str) -> None:
    stats, html = see(alias, "nothing")
    assert stats["leases"] == []
    assert text(html) == "This request held no connection."
    assert drawing.subtitle(stats) == "none held"
    assert drawing.subtitle({}) == "none held"
    assert drawing.draw({}) == ""  # it was switched off then


def test_another_threads_leases_are_not_of_the_request(alias: str) -> None:
    """Whether it serves another request or none."""

    def others() -> None:
        run_in_thread(lambda: backend_pid(alias))
        run_in_thread(lambda: serve(f"/{alias}/held/several/"))

    for name in (alias, STOCK_OF[alias]):
        with meanwhile(others):
            stats, _ = see(name, "waiting")
        (lease,) = stats["leases"]
        assert lease["thread"] == str(threading.get_ident())
        assert len(stats["queries"]) == 1


def test_threads_in_the_requests_context_are_of_it(alias: str) -> None:
    """Each with a row of its own, in which its name is."""
    for name in (alias, STOCK_OF[alias]):

        def query_in_thread(name: str = name) -> None:
            context = contextvars.copy_context()
            run_in_thread(lambda: context.run(backend_pid, name))

        with meanwhile(query_in_thread):
            stats, html = see(name, "waiting")
        ident = str(threading.get_ident())
        other, own = stats["leases"]
        assert own["thread"] == ident != other["thread"]
        assert len(re.findall('class="lane"', html)) == 2
        assert stats["threads"][other["thread"]] in html
        assert len(stats["queries"]) == 2


def test_each_alias_has_a_row(alias: str) -> None:
    for name in (alias, STOCK_OF[alias]):
        stats, html = see(name, "several")
        assert [each["alias"] for each in stats["leases"]] == [name, "default"]
        assert len(re.findall('class="lane"', html)) == 2
        assert "What held connections" in text(html) or "What needed" in text(html)
        assert {row[0] for row in rows(html)} == {name, "default"}
        assert stats["engines"]["default"] == "django_pg_real_pool"


def test_a_coroutines_leases_began_where_it_awaits(alias: str) -> None:
    """It is not on the stack of the thread that queries, here the request's own."""
    for name in (alias, STOCK_OF[alias]):
        stats, html = async_to_sync(asee)(name, "coroutines")
        found = [each[0] for each in rows(html)]
        for mark in ("await", "async for"):
            assert short(mark, "coroutines") in found
        assert short("thread", "in_thread") in found
        assert len({each["thread"] for each in stats["leases"]}) == 2
        assert len(stats["queries"]) == 4
        connections[name].close()


def test_an_asynchronous_view_of_a_synchronous_server(alias: str) -> None:
    """Its coroutine is found all the same, if it is one."""
    _, html = see(alias, "coroutines")
    assert short("await", "coroutines") in [each[0] for each in rows(html)]
    _, html = see(alias, "gathering")
    assert "a place that is not known" in text(html)


def test_what_was_taken_before_the_request_has_no_known_hold(alias: str) -> None:
    """It lasts until it is seen to be back."""
    recording = Recording()
    with pin_connection(alias):
        recording.start()
        recording.attach_all()
        held_pages.query(alias)
    held_pages.query(alias)
    recording.stop()
    stats = recording.as_stats()
    before, lease = stats["leases"]
    assert (before["rest"], before["holds"]) == ("unknown", [])
    assert 0 == before["time"][0] < before["time"][1] <= lease["time"][0]
    assert [hold[0] for hold in lease["holds"]] == ["cursor"]
    html = drawing.draw(stats)
    assert "kept since before the toolbar began" in text(html)
    assert [each.kind for each in picture(html)].count("unknown") == 1


def test_what_no_pool_has_is_kept(alias: str) -> None:
    """By an engine of ours as well: `"pool": False`."""
    name = UNPOOLED_OF[alias]
    stats, html = see(name, "waiting")
    (lease,) = stats["leases"]
    assert (lease["rest"], lease["is_out"]) == ("unknown", True)
    assert "or from no pool" in text(html)


def test_a_dropped_cursor_and_a_closed_wrapper_end_what_they_needed(alias: str) -> None:
    """Beneath Django's own backend; and so does a rollback by hand."""
    stats, _ = see(STOCK_OF[alias], "dropping")
    first, second = stats["leases"]
    kept, dropped = first["holds"]
    assert kept[2] == first["time"][1] < second["time"][0]
    assert dropped[2] < kept[2]
    names = [hold[0] for hold in second["holds"]]
    assert names == ["cursor", "transaction", "cursor", "cursor"]
    assert second["holds"][1][2] < second["time"][1]


def test_an_execute_wrapper_of_the_pages_own_is_not_disturbed(alias: str) -> None:
    """It is entered before there is a connection, and left when there is one."""
    seen = []

    def wrapper(execute: Any, *args: Any) -> Any:
        seen.append(args[0])
        return execute(*args)

    def query() -> None:
        with connections[name].execute_wrapper(wrapper):
            held_pages.query(name)

    for name in (alias, STOCK_OF[alias]):
        seen.clear()
        with meanwhile(query):
            stats, _ = see(name, "waiting")
        assert len(seen) == 1
        assert len(stats["queries"]) == 2
        assert connections[name].execute_wrappers == []


def test_nothing_of_it_is_left_behind(alias: str) -> None:
    """No observer, no receiver, no patch, and no context."""
    receivers = len(connection_created.receivers)
    for name in (alias, STOCK_OF[alias]):
        see(name, "order")  # what is the toolbar's own, and Django's, stays
        before = set(vars(connections[name]))
        see(name, "order")
        assert set(vars(connections[name])) == before
        assert not {"connect", "commit", "rollback", "close"} & before
        assert connections[name].execute_wrappers == []
    assert not observers.listening
    assert len(connection_created.receivers) == receivers
    assert current.get() is None


@pytest.mark.parametrize("ours", [True, False])
def test_nothing_is_left_by_a_thread_that_outlasts_the_request(
    alias: str, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was about to watch its wrapper when the request ended."""
    name = alias if ours else STOCK_OF[alias]
    recording = Recording()
    attach, stop = recording._attach, recording.stop
    may_stop, may_go_on = threading.Event(), threading.Event()

    def attach_late(*args: Any) -> None:
        may_stop.set()
        assert may_go_on.wait(DEADLINE)
        attach(*args)

    def query() -> None:
        wrapper = connections[name]
        wrapper.close()
        held_pages.query(name)
        left.extend(wrapper.execute_wrappers)
        left.extend({"connect", "commit", "rollback", "close"} & set(vars(wrapper)))

    left: list[Any] = []
    recording.start()
    monkeypatch.setattr(recording, "_attach", attach_late)
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=lambda: run_in_thread(lambda: context.run(query)), daemon=True
    )
    thread.start()
    try:
        assert may_stop.wait(DEADLINE)
        stop()
    finally:
        may_go_on.set()
        thread.join(DEADLINE)
    assert left == []
    recording._waited_in_vain(name, None, 0.0, 1.0)
    stats = recording.as_stats()
    assert stats["leases"] == stats["timeouts"] == []
    assert stats["engines"] == stats["threads"] == {}


def test_nothing_is_left_by_a_request_whose_end_was_interrupted(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: while it waited to be told the rest."""
    name = STOCK_OF[alias]
    recording = Recording()
    recording.start()
    held_pages.query(name)
    recording.attach_all()

    def interrupted() -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(observers, "wait_until_told", interrupted)
        with pytest.raises(Stop):
            recording.stop()
    assert connections[name].execute_wrappers == []
    assert "connect" not in vars(connections[name])
    assert not observers.listening
    assert current.get() is None


@pytest.mark.parametrize("change", ["add", "remove"])
def test_who_is_interrupted_when_it_begins_to_watch_keeps_nobody_out(
    alias: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: nor when it ends; from Python 3.14 on a `with lock:` does."""
    lock = Seized()
    monkeypatch.setattr(watchers, "_lock", lock)
    with pytest.raises(Stop):
        getattr(watchers, change)(connections[STOCK_OF[alias]], Recording())
    assert lock.is_free()


def test_what_a_tool_has_replaced_stays_replaced(alias: str) -> None:
    """As Django's test cases do, which forbid the database."""
    wrapper = connections[STOCK_OF[alias]]
    calls = []

    def connect() -> None:
        calls.append(1)
        type(wrapper).connect(wrapper)

    wrapper.connect = connect  # type: ignore[method-assign]
    try:
        stats, _ = see(STOCK_OF[alias], "waiting")
        assert wrapper.connect is connect
    finally:
        del wrapper.connect
    assert len(calls) == len(stats["leases"]) == 1
    assert [hold[0] for hold in stats["leases"][0]["holds"]] == ["cursor"]


def test_other_databases_are_left_alone(tmp_path: Path) -> None:
    """What switching would give is a question to PostgreSQL only."""
    connections.databases["lite"] = connections.configure_settings(
        {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "lite"}}
    )["default"]
    recording = Recording()
    try:
        recording.start()
        recording.attach_all()
        assert "connect" not in vars(connections["lite"])
        assert connections["lite"].execute_wrappers == []
        with connections["lite"].cursor() as cursor:
            cursor.execute("SELECT 1")
        recording.stop()
        assert recording.as_stats()["leases"] == recording.queries == []
    finally:
        connections["lite"].close()
        del connections["lite"], connections.databases["lite"]


def test_requests_that_share_a_thread_are_told_apart(alias: str) -> None:
    """As coroutines do: each has the wrapper watched until the last one ends."""
    name = STOCK_OF[alias]
    connections[name].close()
    first, second = Recording(), Recording()
    contexts = [contextvars.copy_context() for _ in range(2)]
    for context, recording in zip(contexts, (first, second), strict=True):
        context.run(recording.start)
        context.run(recording.attach_all)
    contexts[0].run(held_pages.query, name)
    contexts[0].run(first.stop)
    contexts[0].run(first.stop)
    assert "connect" in vars(connections[name])
    contexts[1].run(held_pages.query, name)
    held_pages.query(name)
    contexts[1].run(second.stop)
    assert "connect" not in vars(connections[name])
    connections[name].close()
    for recording in (first, second):
        (lease,) = recording.leases
        assert isinstance(lease, Kept)
        assert len(recording.queries) == 1
        # Closed where no recording heard of it.
        assert recording.as_stats()["leases"][0]["time"][1] > 0


def test_the_history_has_the_panel_of_an_earlier_request(alias: str) -> None:
    """From what is stored: it is drawn again, and named in the list of panels."""
    response = serve(f"/{alias}/held/order/")
    serve(f"/{alias}/held/nothing/")
    stored, html = leases_of(response)
    query = {"request_id": request_id(response), "exclude_history": "True"}
    sidebar = Client().get("/__debug__/history_sidebar/", query).json()
    button = sidebar["LeasesPanel"]["button"]
    assert f"held {drawing.subtitle(stored)[5:]}" in button
    assert leases_of(response)[1] == html


def test_numbers_are_written_as_svg_has_them(alias: str) -> None:
    """Whatever the language of the page writes between digits."""
    with translation.override("de"):
        _, html = see(alias, "order")
        picture(html)
    assert not re.search(r"=\"[0-9]+,[0-9]", html)


def test_a_page_of_many_lines_lists_the_longest() -> None:
    holds = [["cursor", n / 100, (n + 0.5) / 100, f"/a.py:{n} in b"] for n in range(90)]
    lease: dict[str, Any] = {"alias": "default", "thread": "1", "rest": None, "waited": 0.0}
    lease |= {"time": [0.0, 0.9], "is_out": False, "holds": holds}
    stats = {"took": 1.0, "engines": {"default": "e"}, "threads": {}, "leases": [lease]}
    html = drawing.draw({**stats, "queries": [], "timeouts": []})
    assert len(rows(html)) == drawing.MOST_LINES
    assert "And 40 lines more" in text(html)


def test_what_covers_is_the_longest_hold() -> None:
    """And what nothing covers is the rest, if the connection was kept all the same."""
    holds = [
        *(["cursor", 1, 3, "a"], ["transaction", 2, 6, "b"], ["cursor", 4, 5, "c"]),
        *(["pin", 8, 9, "d"], ["cursor", 9, 9, "e"]),
    ]
    lease: dict[str, Any] = {"holds": holds, "rest": None, "time": [0, 10]}
    found = [(part.hold[0], *part[1:]) for part in drawing.parts_of(lease)]
    assert found == [("cursor", 1, 2), ("transaction", 2, 6), ("pin", 8, 9)]
    lease["rest"] = "nothing"
    found = [(part.hold[0], *part[1:]) for part in drawing.parts_of(lease)]
    assert found == [
        *(("nothing", 0, 1), ("cursor", 1, 2), ("transaction", 2, 6)),
        *(("nothing", 6, 8), ("pin", 8, 9), ("nothing", 9, 10)),
    ]


def test_without_the_toolbar_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "django_pg_real_pool.contrib.debug_toolbar"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "debug_toolbar.panels", None)
    with pytest.raises(ImproperlyConfigured) as raised:
        importlib.import_module(name)
    assert str(raised.value).startswith(f"{name} needs django-debug-toolbar (")
    assert str(raised.value).endswith("Install it: pip install django-debug-toolbar")
