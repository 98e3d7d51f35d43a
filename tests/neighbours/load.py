"""A client with many requests at once, over a server's Unix socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from typing import Any

import httpx
from helpers import wait_until

from neighbours.processes import Running, running

#: Seconds after which an answer does not count.
PATIENCE = 60.0


@contextmanager
def serving(arguments: list[str], settings: Mapping[str, object]) -> Iterator[Running]:
    """Run a server that listens on the socket `socket` in its folder; wait until it does."""
    with running(arguments, settings) as server:
        wait_until(server.is_ready(lambda: _answers(server)), "the server is ready")
        yield server


def _answers(server: Running) -> bool:
    with socket.socket(socket.AF_UNIX) as attempt:
        try:
            attempt.connect(server.socket)
        except OSError:
            return False
    return ask(server, "/ready/") == ["yes"]


@asynccontextmanager
async def client_of(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    # No connection is used twice: a server that ends a worker may close it meanwhile.
    transport = httpx.AsyncHTTPTransport(
        uds=server.socket,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
    )
    async with httpx.AsyncClient(
        transport=transport, base_url="http://site", timeout=PATIENCE
    ) as client:
        yield client


def ask(server: Running, path: str, times: int = 1, at_once: int = 1) -> list[Any]:
    """Get a page many times; return the lines of all answers, of which none is an error."""

    async def ask_all() -> list[list[Any] | BaseException]:
        places = asyncio.Semaphore(at_once)
        async with client_of(server) as client:

            async def ask_in_turn() -> list[Any]:
                async with places:
                    return await lines_of(client, path)

            requests = [ask_in_turn() for _ in range(times)]
            return await asyncio.gather(*requests, return_exceptions=True)

    lines, errors = _sorted_out(asyncio.run(ask_all()))
    for error in errors:
        raise error
    return lines


def ask_until_all_wait(
    server: Running, paths: Sequence[str], meanwhile: Callable[[], None]
) -> tuple[list[Any], list[BaseException]]:
    """Get pages at once; call `meanwhile` when each request waits at the gate, or failed.

    Then the gate is opened.  Returns the lines of the answers, and what was raised in the
    place of others.
    """

    async def ask_all() -> list[list[Any] | BaseException]:
        async with client_of(server) as client:
            requests = [asyncio.ensure_future(lines_of(client, path)) for path in paths]

            async def how_many() -> int:
                ((gate,),) = [await lines_of(client, "/gate/")]
                return int(gate["arrived"]) + sum(each.done() for each in requests)

            async def all_wait() -> None:
                while await how_many() < len(paths):
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(all_wait(), PATIENCE)
            await asyncio.to_thread(meanwhile)
            await lines_of(client, "/gate/open/")
            return await asyncio.gather(*requests, return_exceptions=True)

    return _sorted_out(asyncio.run(ask_all()))


async def lines_of(client: httpx.AsyncClient, path: str) -> list[Any]:
    answer = await client.get(path)
    answer.raise_for_status()
    return [json.loads(line) for line in answer.text.splitlines()]


def _sorted_out(
    answers: Iterable[list[Any] | BaseException],
) -> tuple[list[Any], list[BaseException]]:
    errors = [each for each in answers if isinstance(each, BaseException)]
    lines = [each for each in answers if isinstance(each, list)]
    return list(chain.from_iterable(lines)), errors
