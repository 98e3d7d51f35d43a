"""One process of several behind a pooler: threads that write, read, and look who reads.

Runs as `python bouncer_load.py ENGINE PORT`; prints what it came to as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django
from django.conf import settings

THREADS = 8
REQUESTS = 15
POOL = 3


def alias_for(engine: str, port: str) -> dict[str, Any]:
    """Return an alias as docs/how-to/use-with-pgbouncer.md has it."""
    from settings import database, native_pool, queue_pool

    pools = {
        "django_pg_real_pool": native_pool,
        "django_pg_real_pool.dj_db_conn_pool": queue_pool,
    }
    return database(engine, **pools[engine](POOL, 30)) | {
        "HOST": "127.0.0.1",
        "PORT": port,
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "RELEASE_OPTIONS": {"SESSION_STATE": "error"},
    }


def request(who: str) -> list[str]:
    """Do what a request does; return what was not as it must be."""
    from django.db import connection, transaction
    from items import Item

    wrong = []
    Item.objects.create(name=who)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('load.who', %s, true)", [who])
        Item.objects.filter(name=who).update(name=f"{who}!")
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('load.who')")
            if (seen := cursor.fetchone()) != (who,):
                wrong.append(f"{who} has the setting of {seen}")
        transaction.on_commit(lambda: wrong.extend(still_held(who)))
    mine = Item.objects.filter(name__startswith=f"{who}!")
    if [item.name for item in mine.iterator(chunk_size=1)] != [f"{who}!"]:
        wrong.append(f"{who} does not find what it wrote")
    return wrong + still_held(who)


def still_held(who: str) -> list[str]:
    from django.db import connection

    return [] if connection.connection is None else [f"{who} holds its connection"]


def main(engine: str, port: str) -> None:
    settings.configure(DATABASES={"default": alias_for(engine, port)}, USE_TZ=True)
    django.setup()
    from django.db import connections

    from django_pg_real_pool import pool_status

    name = f"{threading.get_native_id()}"
    ready = threading.Barrier(THREADS)

    def work(thread: int) -> list[str]:
        ready.wait()
        wrong: list[str] = []
        for number in range(REQUESTS):
            try:
                wrong += request(f"{name}-{thread}-{number}-")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a result
                wrong.append(f"{type(error).__name__}: {error}")
        connections.close_all()
        return wrong

    with ThreadPoolExecutor(THREADS) as threads:
        wrong = [each for found in threads.map(work, range(THREADS)) for each in found]
    print(json.dumps({"wrong": wrong, "in use": pool_status().census.in_use}))
    connections["default"].close_pool()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(*sys.argv[1:])
