"""A site of one page that uses the database in each way a request does.

The page says after each step whether its connection is held, so that whatever tool the
site runs under, a visit shows whether connections are released as ever.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.apps import apps
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.db import DatabaseError, connections, transaction
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.test import RequestFactory, override_settings
from django.urls import URLPattern, URLResolver, include, path
from helpers import census
from items import Item

#: Whether a connection is held after each step of the page.
WHEN_HELD = {
    "after a query": False,
    "in a block that has done nothing": False,
    "in a block": True,
    "in a block within": True,
    "after the block within": True,
    "after COMMIT": False,
    "after ROLLBACK": False,
    "in a loop": True,
    "after the loop": False,
    "after an error": False,
    "with an open cursor": True,
    "after the cursor": False,
}

#: Where the tools have pages of their own.
MOUNTS = {"debug_toolbar": "__debug__/", "silk": "silk/"}


class Undone(Exception):
    """Ends a block, which is then rolled back."""


def page(request: HttpRequest, alias: str) -> HttpResponse:
    db = connections[alias]
    held: dict[str, Any] = {}

    def look(when: str) -> None:
        held[when] = db.connection is not None
        if census(alias).in_use != held[when]:
            held[when] = f"{held[when]}, but the pool says {census(alias)}"

    for step in (query, block, block_that_is_undone, loop, error, cursor):
        step(alias, look)
    html = f"<html><body><p>{Item.objects.using(alias).count()} items</p></body></html>"
    return HttpResponse(html, headers={"X-Held": json.dumps(held)})


Look = Callable[[str], None]


def query(alias: str, look: Look) -> None:
    Item.objects.using(alias).create(name="pen")
    look("after a query")


def block(alias: str, look: Look) -> None:
    with transaction.atomic(using=alias):
        look("in a block that has done nothing")
        pen = Item.objects.using(alias).get(name="pen")
        look("in a block")
        with transaction.atomic(using=alias):
            pen.save()
            look("in a block within")
        look("after the block within")
    look("after COMMIT")


def block_that_is_undone(alias: str, look: Look) -> None:
    try:
        with transaction.atomic(using=alias), transaction.atomic(using=alias):
            Item.objects.using(alias).create(name="ink")
            raise Undone
    except Undone:
        look("after ROLLBACK")


def loop(alias: str, look: Look) -> None:
    items = Item.objects.using(alias)
    items.bulk_create([Item(name=name) for name in ("book", "chalk")])
    for item in items.order_by("id").iterator(chunk_size=1):
        look("in a loop")
        items.filter(pk=item.pk).update(name=item.name)
    look("after the loop")


def error(alias: str, look: Look) -> None:
    try:
        Item.objects.using(alias).create(name="pen")
    except DatabaseError as refused:
        # With their frames go the cursors that they refer to, as at the end of a view.
        traceback.clear_frames(refused.__traceback__)
    look("after an error")


def cursor(alias: str, look: Look) -> None:
    with connections[alias].cursor() as opened:
        opened.execute("SELECT name FROM item WHERE name = %s", ["chalk"])
        look("with an open cursor")
        assert opened.fetchall() == [("chalk",)]
    look("after the cursor")


def failing_page(request: HttpRequest, alias: str) -> HttpResponse:
    with transaction.atomic(using=alias):
        Item.objects.using(alias).create(name="ink")
        opened = connections[alias].cursor()
        opened.execute("SELECT 1")
        raise Undone("in the middle of a page")


async def async_page(request: HttpRequest, alias: str) -> HttpResponse:
    """Use the database as coroutines do; say how many connections each step has left."""
    items = Item.objects.using(alias)
    await items.acreate(name="pen")
    held = {"after a query": census(alias).in_use}
    async for item in items.all():
        await items.filter(pk=item.pk).aupdate(name="pen")
    held["after the loop"] = census(alias).in_use
    await sync_to_async(block)(alias, lambda when: None)
    held["after COMMIT"] = census(alias).in_use
    html = f"<html><body><p>{await items.acount()} items</p></body></html>"
    return HttpResponse(html, headers={"X-Held": json.dumps(held)})


class Shelf:
    """Something that asks the database when it is looked at."""

    def __init__(self, alias: str) -> None:
        self.items = Item.objects.using(alias)

    def __repr__(self) -> str:
        return f"a shelf of {self.items.count()}"


TEMPLATE = "<html><body>{% for item in items %}<p>{{ item.name }}</p>{% endfor %}</body>"


def template(request: HttpRequest, alias: str) -> HttpResponse:
    """Answer with a page whose queries are made while its template is rendered."""
    context = {"items": Item.objects.using(alias).order_by("id"), "shelf": Shelf(alias)}
    return HttpResponse(engines["django"].from_string(TEMPLATE).render(context, request))


urlpatterns: list[URLPattern | URLResolver] = [
    path("<str:alias>/page/", page),
    path("<str:alias>/async/", async_page),
    path("<str:alias>/failing/", failing_page),
    path("<str:alias>/template/", template),
]
urlpatterns += [
    path(prefix, include(f"{app}.urls"))
    for app, prefix in MOUNTS.items()
    if apps.is_installed(app)
]


def serve(url: str) -> HttpResponse:
    """Answer a request as a server does: from its beginning to its end, in this thread."""
    begun: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        begun.update(status=int(status.split()[0]), headers=dict(headers))

    answer: Any = WSGIHandler()(RequestFactory().get(url).environ, start_response)
    try:
        content = b"".join(answer)
    finally:
        answer.close()
    return HttpResponse(content, **begun)


def visit(alias: str) -> HttpResponse:
    """Get the page, check that it works and that it releases, and undo what it wrote."""
    wrapper: Any = connections[alias]
    wrapper.clean_savepoints()  # whose names count up, as those of cursors do
    wrapper._named_cursor_idx = 0
    response = serve(f"/{alias}/page/")
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("TRUNCATE item RESTART IDENTITY")
    assert response.status_code == 200
    assert b"3 items" in response.content
    if not alias.startswith("stock_"):
        assert json.loads(response["X-Held"]) == WHEN_HELD
    assert wrapper.connection is None
    return response


class Router:
    """Sends the models of tools, and all others, to one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return self.alias

    db_for_write = db_for_read

    def allow_relation(self, *args: Any, **hints: Any) -> bool:
        return True


@contextmanager
def migrated(alias: str) -> Iterator[None]:
    """Let what the tools store be in the database, used by way of `alias`."""
    with override_settings(DATABASE_ROUTERS=[Router(alias)]):
        options: dict[str, Any] = {"database": alias, "verbosity": 0}
        call_command("migrate", **options)
        connections[alias].close()
        try:
            yield
        finally:
            with psycopg.connect(autocommit=True) as connection:
                tables = connection.execute(
                    "SELECT tablename FROM pg_tables"
                    " WHERE schemaname = 'public' AND tablename <> 'item'"
                ).fetchall()
                for (table,) in tables:
                    connection.execute(f'DROP TABLE "{table}" CASCADE')


@contextmanager
def counting_connections(alias: str) -> Iterator[list[Any]]:
    """Collect the wrapper each time that `connection_created` is sent for `alias`."""
    sent: list[Any] = []

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            sent.append(connection)

    connection_created.connect(receive)
    try:
        yield sent
    finally:
        connection_created.disconnect(receive)


@contextmanager
def counting_calls(target: Any, name: str) -> Iterator[list[Any]]:
    """Collect the first argument of each call of a function that works on as it did."""
    calls: list[Any] = []
    original = getattr(target, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0] if args else None)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, counted)
        yield calls
