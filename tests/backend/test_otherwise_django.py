"""D1: a program that runs on an engine can't tell that it is not its stock backend.

Each program runs on both, and everything that can be seen of it is compared: what it
returned or raised, the queries logged, the rows committed, the transaction's state.
"""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connections
from helpers import backend_pid, census
from programs import PROGRAMS, insert, names
from settings import STOCK_OF, UNPOOLED_OF
from side_by_side import Program, assert_same, observe
from traffic import warm_up

each_program = pytest.mark.parametrize(
    "run", PROGRAMS, ids=lambda function: function.__name__
)


@pytest.fixture(autouse=True)
def _at_rest(alias: str) -> None:
    """Let the pool open what it opens by itself, so that its census is exact."""
    warm_up(alias)


@each_program
def test_a_program_can_not_tell_the_engine_from_stock(alias: str, run: Program) -> None:
    """D1: rows, exceptions, queries, wrappers, callbacks, blocks: as stock."""
    ours, stock = observe(alias, run), observe(STOCK_OF[alias], run)
    assert_same(ours, stock)
    assert census(alias).in_use == 0


@each_program
def test_a_program_can_not_tell_an_alias_without_a_pool(alias: str, run: Program) -> None:
    """D7: with `"pool": False` an engine is its stock backend, through all of them."""
    unpooled = UNPOOLED_OF[alias]
    assert_same(observe(unpooled, run), observe(f"stock_{unpooled}", run))


def test_debug_and_plain_cursors_give_the_same(alias: str, wrapper: Any) -> None:
    """D1: logging changes nothing but the log."""
    insert(wrapper, "a")
    assert wrapper.queries == []
    wrapper.force_debug_cursor = True
    try:
        assert names(wrapper) == ["a"]
    finally:
        wrapper.force_debug_cursor = False
    assert names(wrapper) == ["a"]
    assert [query["sql"] for query in wrapper.queries] == [
        "SELECT name FROM item ORDER BY id"
    ]
    wrapper.queries_log.clear()


def test_an_alias_without_a_pool_keeps_its_connection(alias: str) -> None:
    """D7: nothing is released early there, and nothing is held by a lease."""
    unpooled: Any = connections[UNPOOLED_OF[alias]]
    pid = backend_pid(UNPOOLED_OF[alias])
    for _ in range(3):
        assert unpooled.connection is not None
        assert backend_pid(UNPOOLED_OF[alias]) == pid
    assert unpooled._lease.holds.describe() == []
    unpooled.close()
    assert unpooled.connection is None
