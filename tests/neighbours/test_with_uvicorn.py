"""uvicorn: async views and streams, many times more numerous than the pool.

Each request has a thread of its own for what is not async, and Django's stock backend
keeps that thread's connection to the request's end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from helpers import wait_until
from items import Item

from neighbours.load import ask, ask_until_all_wait, client_of, lines_of, serving
from neighbours.processes import Running

POOL = 5
CROWD = 200

#: Seconds that stock waits for a connection: it fails all the same if it may wait longer.
STOCK_TIMEOUT = 1

ROWS = "/async/rows/"
PAGES = ["/async/view/", "/async/stream/"]
ENGINES = ["native", "dj"]


@contextmanager
def uvicorn(alias: str, **settings: Any) -> Iterator[Running]:
    arguments = ["uvicorn", "--uds", "socket", "neighbours.site.asgi:application"]
    with serving(arguments, {"ALIAS": alias, **settings}) as server:
        yield server


def status_of(server: Running) -> dict[str, Any]:
    (status,) = ask(server, "/status/")
    return dict(status)


def assert_nothing_is_held(server: Running, at_most: int = POOL) -> None:
    wait_until(lambda: status_of(server)["in_use"] == 0, "nothing is in use")
    assert status_of(server)["leases"] == []
    server.assert_idle(at_most)


@pytest.mark.parametrize("alias", ENGINES)
def test_200_async_views_and_200_streams_at_once_share_five_connections(alias: str) -> None:
    with uvicorn(alias, POOL_SIZE=POOL) as server:

        def while_all_wait() -> None:
            assert_nothing_is_held(server)

        lines, errors = ask_until_all_wait(server, PAGES * CROWD, while_all_wait)
        assert errors == []
        assert len(lines) == CROWD + 3 * CROWD
        assert_nothing_is_held(server)
        backends = {pid for line in lines for pid in line["backends"]}
        assert len(backends) <= POOL
        # Once in each request, as with stock; not once for each of its queries.
        status = status_of(server)
        assert status["queries"] == 5 * CROWD + 3 * CROWD
        assert status["connected"] <= 2 * CROWD + POOL


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("alias", ENGINES)
def test_stock_fails_with_the_same_program(alias: str, page: str) -> None:
    settings = {"POOL_SIZE": POOL, "POOL_TIMEOUT": STOCK_TIMEOUT}
    with uvicorn(f"stock_{alias}", **settings) as server:

        def while_all_wait() -> None:
            assert len(server.connections()) == POOL

        _, errors = ask_until_all_wait(server, [page] * CROWD, while_all_wait)
        assert len(errors) == CROWD - POOL
        assert "couldn't get a connection" in server.log or "QueuePool limit" in server.log


@pytest.mark.parametrize("alias", ENGINES)
def test_threads_of_the_event_loop_give_back_what_nobody_closes(alias: str) -> None:
    """Those of `sync_to_async(thread_sensitive=False)`, which outlive their requests."""
    with uvicorn(alias, POOL_SIZE=2) as server:
        lines = ask(server, "/async/offload/", times=20, at_once=10)
        assert len(lines) == 20
        assert len({pid for line in lines for pid in line["backends"]}) <= 2
        assert_nothing_is_held(server, at_most=2)
        # Nobody closes them, so each thread is told once that it is connected.
        assert status_of(server)["connected"] <= 32 + 2


def test_stock_has_no_connection_left_for_more_threads_than_connections() -> None:
    with uvicorn("stock_native", POOL_SIZE=2, POOL_TIMEOUT=STOCK_TIMEOUT) as server:
        with pytest.raises(httpx.HTTPStatusError, match="500"):
            ask(server, "/async/offload/", times=20, at_once=10)
        assert "couldn't get a connection" in server.log


@pytest.mark.parametrize("alias", ENGINES)
def test_a_client_that_goes_away_does_not_keep_the_connection_of_its_stream(
    alias: str,
) -> None:
    Item.objects.bulk_create([Item(name=f"row {number}") for number in range(10)])
    with uvicorn(alias, POOL_SIZE=POOL) as server:

        async def read_one_row_and_go() -> None:
            async with client_of(server) as client, client.stream("GET", ROWS) as answer:
                rows = answer.aiter_lines()
                assert await anext(rows) == '"row 0"'
                (status,) = await lines_of(client, "/status/")
                assert status["in_use"] == 1
                assert "(open cursor" in status["leases"][0]

        for _ in range(2 * POOL):  # more than there are
            asyncio.run(read_one_row_and_go())
            assert_nothing_is_held(server)


@pytest.mark.parametrize("alias", ENGINES)
def test_a_stream_of_rows_holds_a_connection_to_its_last_row(alias: str) -> None:
    Item.objects.bulk_create([Item(name=f"row {number}") for number in range(10)])
    with uvicorn(alias, POOL_SIZE=POOL) as server:

        def while_all_wait() -> None:
            assert status_of(server)["in_use"] == POOL

        lines, errors = ask_until_all_wait(server, [ROWS] * POOL, while_all_wait)
        assert errors == []
        assert Counter(lines) == {f"row {number}": POOL for number in range(10)}
        assert_nothing_is_held(server)
