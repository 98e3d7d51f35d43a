"""What the site's pages and tasks do with the database, and what they say about it."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import Any

from django.db import connection, transaction
from django.db.backends.signals import connection_created
from items import Item

#: Seconds that a page spends on other things than the database.
OTHER_WORK = 0.02

#: How often this process was told that there is a connection, and made queries.
counted: Counter[str] = Counter()
_lock = threading.Lock()


def count(what: str) -> None:
    with _lock:
        counted[what] += 1


def _connected(**_kwargs: Any) -> None:
    count("connected")


connection_created.connect(_connected)


def backend_pid() -> int:
    """Run a query and return which server process ran it."""
    count("queries")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def order() -> list[int]:
    """Go to the database three times, with other work in between."""
    backends = [backend_pid()]
    time.sleep(OTHER_WORK)
    with transaction.atomic():
        backends.append(backend_pid())
        Item.objects.count()
        if backend_pid() != backends[-1]:
            raise AssertionError("a transaction had two connections")
    time.sleep(OTHER_WORK)
    backends.append(backend_pid())
    return backends


def report(backends: list[int]) -> dict[str, Any]:
    """Say what the answer to a request or a task says."""
    return {
        "worker": os.getpid(),
        "thread": threading.get_ident(),
        "backends": backends,
        **counted,
    }


def query_early() -> None:
    """Query while the project is loaded, where the test wants it, as some projects do.

    "once" closes the pool again, as our documentation has it for a parent that forks.
    """
    wanted = os.environ.get("SITE_QUERIES_EARLY")
    if wanted:
        backend_pid()
    if wanted == "once":
        wrapper: Any = connection
        wrapper.close_pool()
