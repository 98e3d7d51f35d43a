"""django-debug-toolbar, which gives each wrapper a cursor() of its own.

It makes another cursor out of each that a wrapper makes, of a class that it makes then.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from debug_toolbar.store import get_store
from django.db import connections
from django.test import AsyncClient, Client, override_settings
from helpers import census, pool_of_one
from settings import STOCK_OF
from side_by_side import same_for_all
from traffic import warm_up

from django_pg_real_pool import AutoConnectionReleaseCursor, assert_released
from neighbours import settings_debug_toolbar
from neighbours.visits import counting_connections, migrated, visit


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
