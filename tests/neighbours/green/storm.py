"""Requests in many greenlets, of which some are killed all the time; prints a `Result`.

python -m neighbours.green.storm SECONDS GREENLETS
"""

from __future__ import annotations

from . import spawn  # isort: skip - it patches

import json
import os
import random
import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection, connections, transaction
from helpers import backend_pid, wait_until
from items import Item

SIZE = int(os.environ["SITE_POOL_SIZE"])

#: Seconds that a request spends on other things than the database, twice: it calls an API.
OTHER_WORK = 0.1
#: Seconds between two kills.
KILL_EVERY = 0.005
#: Seconds that the last requests have for their end.
FAREWELL = 60.0


@dataclass
class Result:
    engine: str
    seconds: float = 0.0
    #: Seconds that this process had a processor: other work on the machine does not count.
    cpu: float = 0.0
    requests: int = 0
    killed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    #: Transactions that found their connection in use by another greenlet.
    doubly_used: int = 0
    #: Transactions that were committed, and are not there.
    lost: int = 0
    #: The most connections that the server had at once, and how busy they were on average.
    connections: int = 0
    busy: float = 0.0
    #: Greenlets that did not come to their end.
    hung: int = 0
    #: Connections that were not idle, as the server sees them, in the end.
    not_idle: int = 0
    #: How many connections could be used at once, after that.
    usable: int = 0


class Storm:
    def __init__(self, seconds: float, greenlets: int) -> None:
        self.result = Result(connections["default"].settings_dict["ENGINE"])
        self.end = time.monotonic() + seconds
        self.greenlets: list[Any] = []
        self.how_many = greenlets
        self.in_use: set[int] = set()
        self.committed: list[str] = []
        self.errors: Counter[str] = Counter()
        self.busy: list[int] = []

    def run(self) -> Result:
        began, cpu = time.monotonic(), time.process_time()
        observer = psycopg.connect(autocommit=True)  # while there is room for it
        watcher = threading.Thread(target=self.watch, args=[observer])
        watcher.start()
        self.greenlets = [spawn(self.work) for _ in range(self.how_many)]
        while time.monotonic() < self.end:
            time.sleep(KILL_EVERY)
            self.kill_one()
        result = self.result
        result.seconds = round(time.monotonic() - began, 1)
        result.cpu = round(time.process_time() - cpu, 1)
        result.requests = len(self.committed)
        deadline = time.monotonic() + FAREWELL
        while time.monotonic() < deadline and not all(g.dead for g in self.greenlets):
            time.sleep(0.1)
        result.hung = sum(not each.dead for each in self.greenlets)
        watcher.join()
        self.look_at_the_end(observer)
        result.errors = dict(self.errors)
        return result

    def kill_one(self) -> None:
        which = random.randrange(self.how_many)
        if not self.greenlets[which].dead:
            self.greenlets[which].kill(block=False)
            self.result.killed += 1
        self.greenlets[which] = spawn(self.work)

    def work(self) -> None:
        while time.monotonic() < self.end:
            try:
                self.request()
            except Exception as error:  # noqa: BLE001 - they are counted
                if type(error).__name__ not in self.errors:
                    traceback.print_exc()
                self.errors[type(error).__name__] += 1
            finally:
                connection.close()  # as Django does at the end of a request

    def request(self) -> None:
        backend_pid("default")
        time.sleep(OTHER_WORK)
        name = f"{random.getrandbits(64):x}"
        with transaction.atomic():
            pid = backend_pid("default")
            if pid in self.in_use:
                self.result.doubly_used += 1
            self.in_use.add(pid)
            try:
                Item.objects.create(name=name)
                if backend_pid("default") != pid:
                    self.result.doubly_used += 1
            finally:
                self.in_use.discard(pid)
        self.committed.append(name)
        time.sleep(OTHER_WORK)
        backend_pid("default")

    def watch(self, observer: Any) -> None:
        """Count the connections, as the server sees them."""
        while time.monotonic() < self.end:
            states = states_of_connections(observer)
            self.result.connections = max(self.result.connections, states.total())
            self.busy.append(busy(states))
            time.sleep(0.1)

    def look_at_the_end(self, observer: Any) -> None:
        result = self.result
        result.busy = round(sum(self.busy) / len(self.busy), 2)
        rows = observer.execute("SELECT name FROM item").fetchall()
        result.lost = len(set(self.committed) - {name for (name,) in rows})
        with suppress(AssertionError):
            wait_until(lambda: not busy(states_of_connections(observer)), "all are idle")
        result.not_idle = busy(states_of_connections(observer))
        observer.execute("DELETE FROM item")
        observer.close()
        result.usable = how_many_are_usable()


def states_of_connections(observer: Any) -> Counter[str]:
    rows = observer.execute(
        "SELECT state FROM pg_stat_activity WHERE application_name = %s",
        [os.environ["SITE_NAME"]],
    ).fetchall()
    return Counter(str(state) for (state,) in rows)


def busy(states: Counter[str]) -> int:
    return states.total() - states["idle"]


def how_many_are_usable() -> int:
    """Take connections, each in a greenlet of its own, until there are no more."""
    may_end = threading.Event()
    pids: set[int] = set()

    def use() -> None:
        with transaction.atomic():
            pids.add(backend_pid("default"))
            may_end.wait(10)
        connection.close()

    greenlets = [spawn(use) for _ in range(SIZE)]
    deadline = time.monotonic() + 5
    while len(pids) < SIZE and time.monotonic() < deadline:
        time.sleep(0.05)
    may_end.set()
    while not all(each.dead for each in greenlets) and time.monotonic() < deadline + 5:
        time.sleep(0.05)
    return len(pids)


def use_geventpool() -> None:
    """Have the pool of django-db-geventpool in the place of Django's."""
    alias = settings.DATABASES["default"]
    alias["OPTIONS"].pop("pool")
    alias["OPTIONS"] |= {"MAX_CONNS": SIZE, "REUSE_CONNS": SIZE}
    alias["ENGINE"] = "django_db_geventpool.backends.postgresql_psycopg3"


def main(seconds: str, greenlets: str) -> None:
    if os.environ.get("SITE_GEVENTPOOL"):
        use_geventpool()
    result = Storm(float(seconds), int(greenlets)).run()
    print(json.dumps(asdict(result)), flush=True)
    os._exit(0)  # some may hang


if __name__ == "__main__":
    main(*sys.argv[1:])
