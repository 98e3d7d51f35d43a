"""Pages whose requests hold a connection for known reasons, and known times at least.

Some lines have a mark, `# the mark`, by which tests name them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from items import Item

from django_pg_real_pool import pin_connection

#: Seconds of work that needs no database.
WORK = 0.06
#: What a page does meanwhile; tests put it here.
meanwhile: list[Callable[[], Any]] = []


def place(mark: str, function: str) -> str:
    """Return "file:line in function" of the line that has a mark."""
    lines = Path(__file__).read_text("utf-8").splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
    return f"{__file__}:{number} in {function}"


def work() -> None:
    threading.Event().wait(WORK)


def query(alias: str) -> None:
    Item.objects.using(alias).first()


PAGE = "<html><body>done</body></html>"


def order(request: HttpRequest, alias: str) -> HttpResponse:
    """Hold a connection in three ways, of which the transaction takes longest."""
    items = Item.objects.using(alias)
    items.first()  # query
    with transaction.atomic(using=alias):
        items.filter(name="pen").update(name="pen")  # block
        work()
        work()
        items.filter(name="ink").update(name="ink")
    work()
    for _ in items.iterator(chunk_size=1):  # loop
        threading.Event().wait(WORK / 2)
    return HttpResponse(PAGE)


def session(request: HttpRequest, alias: str) -> HttpResponse:
    with connections[alias].cursor() as cursor:
        cursor.execute("SET application_name = 'seen'")  # set
    work()
    return HttpResponse(PAGE)


def kinds(request: HttpRequest, alias: str) -> HttpResponse:
    """Hold a connection for each reason that there is."""
    query(alias)
    with transaction.atomic(using=alias):
        query(alias)
    with pin_connection(alias):
        work()
    connections[alias].connect()
    work()
    query(alias)
    with connections[alias].cursor() as cursor:
        cursor.execute("SET application_name = 'seen'")
    return HttpResponse(PAGE)


def waiting(request: HttpRequest, alias: str) -> HttpResponse:
    """Query, having let a test do something; it may fail."""
    for do in meanwhile:
        do()
    try_to_query(alias)
    return HttpResponse(PAGE)


def try_to_query(alias: str) -> None:
    with suppress(Exception):  # of Django, or of the pool
        query(alias)


def several(request: HttpRequest, alias: str) -> HttpResponse:
    query(alias)
    query("default")
    return HttpResponse(PAGE)


def nothing(request: HttpRequest, alias: str) -> HttpResponse:
    return HttpResponse(PAGE)


def dropping(request: HttpRequest, alias: str) -> HttpResponse:
    """Leave cursors unclosed, of which one is dropped; close the wrapper in the end."""
    connections[alias].close()  # which has nothing yet
    kept = connections[alias].cursor()
    kept.execute("SELECT 1")
    dropped = connections[alias].cursor()
    dropped.execute("SELECT 1")
    del dropped
    kept.execute("SELECT 2")
    connections[alias].close()
    query(alias)
    connections[alias].set_autocommit(False)
    query(alias)
    connections[alias].rollback()
    connections[alias].set_autocommit(True)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 3")
        cursor.close()
    return HttpResponse(PAGE)


def stream(request: HttpRequest, alias: str) -> StreamingHttpResponse:
    def parts() -> Any:
        query(alias)
        yield "done"

    return StreamingHttpResponse(parts())


async def coroutines(request: HttpRequest, alias: str) -> HttpResponse:
    items = Item.objects.using(alias)
    await items.acount()  # await
    async for _ in items.all():  # async for
        await asyncio.sleep(0)
    await sync_to_async(query)(alias)
    await sync_to_async(in_thread, thread_sensitive=False)(alias)
    return HttpResponse(PAGE)


def in_thread(alias: str) -> None:
    Item.objects.using(alias).first()  # thread
    connections[alias].close()


async def gathering(request: HttpRequest, alias: str) -> HttpResponse:
    async def one() -> None:
        await Item.objects.using(alias).acount()

    async def other() -> None:
        await Item.objects.using(alias).acount()

    await asyncio.gather(one(), other())  # gather
    return HttpResponse(PAGE)
