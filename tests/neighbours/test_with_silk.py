"""django-silk, which runs queries of its own around, after and about those of a page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from helpers import census, pool_of_one
from settings import STOCK_OF
from side_by_side import same_for_all
from silk.config import SilkyConfig
from silk.models import Profile, Request, SQLQuery
from silk.profiling.profiler import silk_profile
from traffic import warm_up

from django_pg_real_pool import assert_released
from neighbours import visits
from neighbours.visits import counting_connections, migrated, visit


@pytest.fixture(autouse=True)
def _stored(alias: str) -> Iterator[None]:
    """Let silk use the engine under test for what it stores, too."""
    warm_up(alias)
    with migrated(alias):
        yield


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets options of silk, which reads the settings only once."""

    def change(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setitem(SilkyConfig().attrs, name, value)

    return change


def recorded() -> list[str]:
    queries = SQLQuery.objects.order_by("id").values_list("query", flat=True)
    return [same_for_all(each) for each in queries]


def test_a_request_is_recorded_with_each_of_its_queries(alias: str) -> None:
    """D1: the same as on stock, although silk explains each query with another cursor."""
    visit(alias)
    ours = recorded()
    assert_released(alias)
    Request.objects.all().delete()
    visit(STOCK_OF[alias])
    assert ours == recorded()
    assert len(ours) == 7
    assert Request.objects.get().num_sql_queries == len(ours)


def test_queries_are_explained(alias: str, options: Any) -> None:
    """R4: within the page's own cursors and blocks, whose connection it stays."""
    options(SILKY_ANALYZE_QUERIES=True, SILKY_EXPLAIN_FLAGS={"costs": False})
    visit(alias)
    explained = [
        each.analysis for each in SQLQuery.objects.filter(query__contains="SELECT")
    ]
    assert explained
    assert all("actual time" in str(each) for each in explained)
    assert_released(alias)


def test_functions_are_profiled(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R1: by decorator and by context manager, with the queries of each."""
    loop = visits.loop

    def profiled_loop(alias: str, look: Any) -> None:
        with silk_profile(name="the loop"):
            loop(alias, look)

    monkeypatch.setattr(visits, "block", silk_profile(name="the block")(visits.block))
    monkeypatch.setattr(visits, "loop", profiled_loop)
    visit(alias)
    profiles = {each.name: each.queries.count() for each in Profile.objects.all()}
    assert profiles == {"the block": 2, "the loop": 4}
    assert_released(alias)


def test_the_interpreter_is_profiled(alias: str, options: Any) -> None:
    """D1: with cProfile switched on for the whole request."""
    options(SILKY_PYTHON_PROFILER=True)
    visit(alias)
    assert "visits.py" in Request.objects.get().pyprofile
    assert_released(alias)


def test_silks_pages_show_it_and_release(alias: str) -> None:
    """R1: pages that are nothing but queries and templates."""
    visit(alias)
    request = Request.objects.get()
    query = SQLQuery.objects.first()
    assert query
    client = Client()
    for page in (
        "",
        "requests/",
        f"request/{request.pk}/",
        f"request/{request.pk}/sql/",
        f"request/{request.pk}/sql/{query.pk}/",
        f"request/{request.pk}/profiling/",
        "profiling/",
        "cleardb/",
    ):
        assert client.get(f"/silk/{page}").status_code == 200
        assert_released(alias)
        assert census(alias).in_use == 0
    client.post("/silk/cleardb/", {"clear_all": "on"})
    assert not Request.objects.exists()


def test_old_requests_are_collected(alias: str, options: Any) -> None:
    """D1: by silk's command, as by chance after a request."""
    options(SILKY_MAX_RECORDED_REQUESTS=1)
    for _ in range(3):
        visit(alias)
    call_command("silk_request_garbage_collect")
    assert Request.objects.count() == 1
    assert_released(alias)


def test_a_page_has_one_connection_announced(alias: str) -> None:
    """D4: not one for each of its queries, nor of silk's."""
    with pool_of_one(alias), counting_connections(alias) as announced:
        for number in range(1, 4):
            visit(alias)
            assert len(announced) == number
    assert SQLQuery.objects.count() == 21
