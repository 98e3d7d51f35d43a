"""Pages for an event loop.  A gate keeps all requests there until the test opens it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

from asgiref.sync import sync_to_async
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from items import Item

from . import work

_arrived = 0
_gate = asyncio.Event()


async def _wait_at_gate() -> None:
    """Be somewhere else, as a call of an API is, until everybody is there."""
    global _arrived
    _arrived += 1
    await _gate.wait()


async def gate(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"worker": os.getpid(), "arrived": _arrived})


async def open_gate(request: HttpRequest) -> JsonResponse:
    _gate.set()
    return await gate(request)


async def view(request: HttpRequest) -> JsonResponse:
    backends = [await sync_to_async(work.backend_pid)()]
    items = await Item.objects.acount()
    await _wait_at_gate()
    orders = await sync_to_async(work.order)()
    if await Item.objects.acount() != items:
        raise AssertionError("the items have changed")
    return JsonResponse(work.report(backends + orders))


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Query for each line, and wait for something else before the next."""

    async def lines() -> AsyncIterator[str]:
        for number in range(3):
            backends = [await sync_to_async(work.backend_pid)()]
            await Item.objects.acount()
            yield json.dumps(work.report(backends)) + "\n"
            if number == 0:
                await _wait_at_gate()

    return StreamingHttpResponse(lines())


async def rows(request: HttpRequest) -> StreamingHttpResponse:
    """Stream what one server-side cursor reads: it is open until the last row."""

    async def lines() -> AsyncIterator[str]:
        items = Item.objects.order_by("pk").aiterator(chunk_size=2)
        async for item in items:
            yield json.dumps(item.name) + "\n"
            await _wait_at_gate()

    return StreamingHttpResponse(lines())


async def offload(request: HttpRequest) -> JsonResponse:
    """Query in threads of the event loop: Django closes nothing at their end."""
    orders = await asyncio.gather(
        *[sync_to_async(work.order, thread_sensitive=False)() for _ in range(12)]
    )
    return JsonResponse(work.report([each for order in orders for each in order]))
