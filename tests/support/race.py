"""Many threads on few connections, and a look at each use whether somebody else is there.

    python tests/support/race.py [--seconds 600] [--threads 16] [--alias busy_native]

`PYTHON_GIL=0` keeps the GIL off where Python can do without.  Prints what was done, and
what was wrong.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import random
import sys
import threading
import time
from _thread import allocate_lock
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connections
from django.db.transaction import atomic
from helpers import has_gil

from django_pg_real_pool import pin_connection, pool_status
from django_pg_real_pool._process import registry


class Undo(Exception):
    """Rolls a block back."""


class Race:
    """What the threads do, each with its own wrapper of one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.lost = 0
        self._until = 0.0

    def run(self, seconds: float, threads: int) -> None:
        self._until = time.monotonic() + seconds
        barrier = threading.Barrier(threads)
        started = [
            threading.Thread(target=self._work, args=(seed, barrier), name=f"racer {seed}")
            for seed in range(threads)
        ]
        for each in started:
            each.start()
        for each in started:
            each.join()
        self._look_at_the_end()

    def _work(self, seed: int, barrier: threading.Barrier) -> None:
        chance, done = random.Random(seed), Counter[str]()
        acts: list[Callable[[], None]] = [
            *[self.query] * 8,
            *[self.block] * 4,
            *(self.rolled_back, self.two_cursors, self.iterator, self.pin, self.session),
            *(self.status, self.close),
        ]
        try:
            barrier.wait(30)
            while time.monotonic() < self._until and not self.wrong:
                act = chance.choice(acts)
                if chance.random() < 0.001:
                    act = chance.choice([self.thread_that_ends, self.collect])
                act()
                done[act.__name__] += 1
        except BaseException as error:  # noqa: BLE001 - it is told at the end
            self.wrong.append(f"{threading.current_thread().name}: {error!r}")
        finally:
            connections[self.alias].close()
            with _adding:
                self.done += done

    # ##### What they do #####

    def query(self) -> None:
        with connections[self.alias].cursor() as cursor:
            self.use(cursor)

    def block(self) -> None:
        with atomic(self.alias):
            first = self.pid()
            with atomic(self.alias):
                self.same(first, self.pid())
            self.same(first, self.pid())

    def rolled_back(self) -> None:
        try:
            with atomic(self.alias):
                self.set("local")
                raise Undo
        except Undo:
            pass

    def two_cursors(self) -> None:
        wrapper = connections[self.alias]
        with wrapper.cursor() as one:
            first = self.use(one)
            with wrapper.cursor() as other:
                self.same(first, self.use(other))

    def iterator(self) -> None:
        cursor = connections[self.alias].cursor()
        cursor.execute("SELECT generate_series(1, 10)")
        for _ in zip(range(3), cursor, strict=False):
            pass
        cursor.close()

    def pin(self) -> None:
        with pin_connection(self.alias):
            self.same(self.pid(), self.pid())

    def session(self) -> None:
        """Change the session; nobody else may see it (S3)."""
        self.set("session")
        self.pid()
        connections[self.alias].close()

    def status(self) -> None:
        assert str(pool_status(self.alias))

    def close(self) -> None:
        connections[self.alias].close()

    def collect(self) -> None:
        gc.collect()

    def thread_that_ends(self) -> None:
        """Let a thread end with a lease (F3)."""
        with _adding:
            if self.lost:  # one at a time, else there is no connection left to work with
                return
            self.lost = 1
        thread = threading.Thread(target=self._end_with_a_lease)
        thread.start()
        thread.join()
        self.lost = 0

    def _end_with_a_lease(self) -> None:
        pin_connection(self.alias).__enter__()

    # ##### What they look at #####

    def pid(self) -> int:
        with connections[self.alias].cursor() as cursor:
            return self.use(cursor)

    def set(self, how: str) -> None:
        with connections[self.alias].cursor() as cursor, self.alone():
            sql = "SELECT set_config('race.who', %s, %s)"
            cursor.execute(sql, [threading.current_thread().name, how == "local"])

    def use(self, cursor: Any) -> int:
        with self.alone():
            cursor.execute("SELECT pg_backend_pid(), current_setting('race.who', true)")
            pid, who = cursor.fetchone()
            me = threading.current_thread().name
            if who not in (None, "", me):
                self.wrong.append(f"{me} found the setting of {who}")
            cursor.execute("SELECT pg_backend_pid()")
            self.same(pid, cursor.fetchone()[0])
        return int(pid)

    def same(self, one: int, other: int) -> None:
        if one != other:
            self.wrong.append(f"two server processes in one go: {one}, {other}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Note if another thread has the connection of this one's open cursor."""
        wrapper: Any = connections[self.alias]
        physical = wrapper._lease.physical
        marker = physical.__dict__.setdefault("_race_marker", allocate_lock())
        if not marker.acquire(False):
            self.wrong.append(f"{threading.current_thread().name} was not alone")
            yield
            return
        try:
            yield
        finally:
            marker.release()

    def _look_at_the_end(self) -> None:
        deadline = time.monotonic() + 15
        while True:
            census = pool_status(self.alias).census
            left = [each for each in registry.leases(self.alias) if each.is_held]
            if not left and not census.in_use and not census.waiting:
                break
            if time.monotonic() > deadline:
                self.wrong.append(f"at the end: {pool_status(self.alias)}")
                break
            time.sleep(0.01)
        if census.max_size is not None and (census.size or 0) > census.max_size:
            self.wrong.append(f"too many connections: {census}")


_adding = threading.Lock()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--alias", default="busy_native")
    options = parser.parse_args()

    sys.path.append(str(Path(__file__).parents[1]))  # for Debian's server
    from server import DATABASE, create_database, provide_server

    provide_server()
    os.environ["PGDATABASE"] = DATABASE
    create_database()
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    import django

    django.setup()
    faulthandler.dump_traceback_later(options.seconds + 120, exit=True)
    race = Race(options.alias)
    race.run(options.seconds, options.threads)
    print(
        json.dumps(
            {
                "python": sys.version.split()[0],
                "GIL": has_gil(),
                **vars(options),
                "done": dict(race.done),
                "uses": sum(race.done.values()),
                "wrong": race.wrong[:10],
            }
        )
    )
    return bool(race.wrong)


if __name__ == "__main__":
    sys.exit(main())
