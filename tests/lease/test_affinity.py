"""An idle pool gives out the connection that was used last, to whoever asks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connections
from faults import extra_alias
from helpers import backend_pid, census, wait_until
from settings import STOCK_OF

from django_pg_real_pool import pin_connection
from django_pg_real_pool._process import reaper

GROWS_AND_SHRINKS = {"min_size": 1, "max_size": 2, "max_idle": 0.2}


def fill(alias: str) -> None:
    """Let the pool of `alias` have two idle connections."""
    wrapper: Any = connections[alias]
    other = wrapper.copy()
    with wrapper.cursor(), other.cursor():
        pass
    other.close()
    wrapper.close()
    wait_until(lambda: census(alias) == (2, 0), f"the pool of {alias} is full")


def meet(alias: str, times: int) -> set[int]:
    """Return which server processes met that many requests of one query."""
    pids = set()
    for _ in range(times):
        pids.add(backend_pid(alias))
        connections[alias].close()
    return pids


@pytest.fixture(params=["native", "dj"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def full(engine: str) -> Iterator[str]:
    """Each engine that has a pool of two, both idle."""
    with extra_alias(f"full_{engine}", engine) as name:
        fill(name)
        yield name


def test_the_connection_that_was_used_last_is_given_out(full: str) -> None:
    assert len(meet(full, 20)) == 1


def test_a_pool_that_was_looked_at_before_its_first_use_is_the_same() -> None:
    """D1: what monitors read must not decide what the pool is."""
    with extra_alias("watched_native", "native") as name:
        wrapper: Any = connections[name]
        assert wrapper.pool.get_stats()["pool_max"] == 2
        fill(name)
        assert len(meet(name, 20)) == 1


def test_stock_gives_out_each_connection_in_turn(engine: str) -> None:
    """What the test above would see if nothing were done."""
    with extra_alias(f"turns_{engine}", STOCK_OF[engine]) as stock:
        fill(stock)
        assert len(meet(stock, 4)) == 2


def test_what_is_not_needed_ages_out() -> None:
    """The pool counts what was idle throughout, and lets go of it."""
    with extra_alias("aging_native", "native", OPTIONS={"pool": GROWS_AND_SHRINKS}) as name:
        fill(name)

        def one_is_left() -> bool:
            backend_pid(name)
            return sum(census(name)) == 1

        wait_until(one_is_left, "the pool of two has shrunk to one")


def test_a_broken_connection_that_close_gave_back_is_replaced_once() -> None:
    """R10: the pool replaces it, and neither its collection nor the reaper another."""
    with extra_alias("broken_native", "native") as name:
        fill(name)
        wrapper: Any = connections[name]
        broken: Any = pin_connection(name).__enter__().connection
        with pytest.raises(psycopg.OperationalError):
            wrapper.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        wrapper.close()
        wait_until(lambda: census(name) == (2, 0), "it is replaced")
        assert broken.closed
        del broken
        gc.collect()
        reaper.reap()
        for _ in range(3):
            wrapper.pool.check()  # on the way through it is counted what there is
            wait_until(lambda: census(name) == (2, 0), "the pool is as it was")
        assert len(set(wrapper.pool._pool)) == 2
