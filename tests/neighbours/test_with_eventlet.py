"""eventlet, which psycopg knows nothing of: it has to be told how to wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from neighbours.broker import Worker, working
from neighbours.green_processes import fails, programs, run_program

POOL = 3
AT_ONCE = 100


@pytest.fixture(scope="module", autouse=True)
def how_to_wait() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PSYCOPG_WAIT_FUNC", "wait_select")
        yield


@pytest.mark.parametrize("name", programs())
def test_program(name: str) -> None:
    run_program(name, GREEN="eventlet")


def test_without_that_the_checks_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """W008: psycopg would block all greenlets, on stock as here."""
    monkeypatch.delenv("PSYCOPG_WAIT_FUNC")
    refused = fails("neighbours.green.programs", "any", GREEN="eventlet")
    assert "django_pg_real_pool.W008" in refused


# ##### Celery #####


@pytest.fixture(scope="module", params=["native", "dj"])
def greenlets(request: pytest.FixtureRequest, how_to_wait: None) -> Iterator[Worker]:
    """A worker with more greenlets than its pool has connections."""
    options = ["--pool", "eventlet", "--concurrency", str(AT_ONCE)]
    with working(options, {"ALIAS": request.param, "POOL_SIZE": POOL}) as worker:
        yield worker


def test_tasks_in_greenlets_share_fewer_connections(greenlets: Worker) -> None:
    results = greenlets.run("order", times=2 * AT_ONCE)
    assert len({pid for each in results for pid in each["backends"]}) <= POOL
    greenlets.process.assert_idle(at_most=POOL)
