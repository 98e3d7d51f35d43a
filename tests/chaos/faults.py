"""The faults.  Each is a function that harms a running load, and says when it did.

It returns the spans of time in which a statement may have been cut off.  A request that
fails outside of them fails for no good reason.
"""

from __future__ import annotations

import ctypes
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from django.db import connection, transaction
from second_server import Server
from tcp_proxy import Proxy

from chaos.load import Interrupted, Load, TimeLimit

SIZE = 4
RESTARTS = 20
FORKS = 200
#: Children that failed, after which no more are forked.
ENOUGH = 5

Span = tuple[float, float]


@dataclass
class Scene:
    """What a fault has to do with."""

    server: Server
    proxy: Proxy
    load: Load
    seconds: float
    #: When each fault began and ended.
    faults: list[Span] = field(default_factory=list)
    #: Seconds from the end of a fault until the pool was of full size and answered.
    recoveries: list[float] = field(default_factory=list)
    #: Children that did not end as they should.
    children_failed: int = 0

    def observe(self, query: str) -> Any:
        address = {**self.server.address, "application_name": "observer"}
        with psycopg.connect(**address) as observer:
            return observer.execute(query).fetchall()

    def await_recovery(self, ended: float) -> None:
        """Wait until the pool has all its connections, and one of them answers."""
        while time.monotonic() < ended + 30:
            ((count,),) = self.observe(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chaos'"
            )
            if count >= SIZE and any(
                request.began > ended and request.error is None
                for request in self.load.requests[-200:]
            ):
                break
            time.sleep(0.01)
        self.recoveries.append(time.monotonic() - ended)

    def until_the_end(self) -> Any:
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            yield


def restarts(scene: Scene) -> None:
    """(a) The server is restarted, by turns politely and not."""
    for number in range(RESTARTS):
        began = time.monotonic()
        scene.server.stop("immediate" if number % 2 else "fast")
        scene.server.start()
        ended = time.monotonic()
        scene.faults.append((began, ended))
        scene.await_recovery(ended)
        time.sleep(0.3)


def kills(scene: Scene) -> None:
    """(b) Backends are terminated, one after the other."""
    for _ in scene.until_the_end():
        began = time.monotonic()
        scene.observe(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
            "WHERE application_name = 'chaos' ORDER BY random() LIMIT 1"
        )
        scene.faults.append((began, time.monotonic()))
        time.sleep(random.uniform(0.02, 0.1))
    scene.await_recovery(time.monotonic())


def network(scene: Scene) -> None:
    """(c) The network cuts connections, delays them, and lets them go silent."""
    proxy = scene.proxy

    def silence() -> None:
        proxy.black_hole()
        time.sleep(0.5)  # what is sent meanwhile is lost, and nobody says so
        proxy.drop()

    def closed_to_new() -> None:
        proxy.refuse()
        proxy.drop()
        time.sleep(0.3)
        proxy.accept()

    for _ in scene.until_the_end():
        harm = random.choice([proxy.drop, proxy.half_close, silence, closed_to_new])
        began = time.monotonic()
        harm()
        ended = time.monotonic()
        # What was on its way in the proxy arrives a moment later.
        scene.faults.append((began, ended + 0.05))
        scene.await_recovery(ended)
        proxy.slow()
        time.sleep(0.3)  # slowness is no reason to fail
        proxy.fast()


def forks(scene: Scene) -> None:
    """(d) Children are forked, by the main thread and by others, and use the database."""
    for number in range(FORKS):
        if scene.children_failed == ENOUGH:
            break  # each that hangs takes long
        if number % 2:
            scene.children_failed += not _fork_and_wait()
        else:
            results: list[bool] = []
            thread = threading.Thread(target=lambda: results.append(_fork_and_wait()))  # noqa: B023
            thread.start()
            thread.join()
            scene.children_failed += results != [True]


def _fork_and_wait() -> bool:
    """Fork a child that queries and forks again; return whether all ended well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _use_the_database()
            grandchild = os.fork()
            if grandchild == 0:
                _use_the_database()
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        finally:
            os._exit(status)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def _use_the_database() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
        cursor.execute("SELECT pg_backend_pid(), count(*) FROM bench_thing")
        if cursor.fetchone()[0] != pid:
            raise SystemExit("two connections in one transaction")


def exceptions(scene: Scene) -> None:
    """(e) Exceptions are thrown into threads, wherever they are."""
    throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
    for _ in scene.until_the_end():
        thread = random.choice(scene.load.threads)
        what = random.choice([Interrupted, TimeLimit])
        began = time.monotonic()
        throw(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(what))
        scene.faults.append((began, began))
        time.sleep(random.uniform(0.001, 0.02))


def deaths(scene: Scene) -> None:
    """(f) Threads end with cursors open and transactions begun."""

    def die() -> None:
        how = random.choice(["cursor", "block", "stream"])
        if how == "cursor":
            connection.cursor().execute("SELECT 1")
        elif how == "block":
            transaction.atomic().__enter__()
            connection.cursor().execute("UPDATE bench_thing SET name = 'dead' WHERE id = 1")
        else:
            next(scene.load.thing.objects.iterator(chunk_size=5))

    for _ in scene.until_the_end():
        thread = threading.Thread(target=_quietly, args=[die])
        thread.start()
        thread.join()
        time.sleep(0.3)
    scene.await_recovery(time.monotonic())


def _quietly(function: Callable[[], None]) -> None:
    with suppress(Exception):  # the pool may be empty by then
        function()


FAULTS: dict[str, Callable[[Scene], None]] = {
    "restarts": restarts,
    "kills": kills,
    "network": network,
    "forks": forks,
    "exceptions": exceptions,
    "deaths": deaths,
}
THREADS = {"forks": 16}
