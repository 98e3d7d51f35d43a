"""Threads that make requests of all kinds, and write down how each one went."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from django.db import close_old_connections, connection
from django.db.models import F
from django.db.transaction import atomic

ROWS = 100


@dataclass(frozen=True)
class Request:
    kind: str
    began: float
    ended: float
    #: What it raised, in words; None if it went well.
    error: str | None


class Interrupted(BaseException):
    """Thrown into a thread, as by a time limit that nothing is to catch."""


class TimeLimit(Exception):
    """Thrown into a thread, as by a time limit that a task may catch."""


def thrown_in(raised: BaseException) -> BaseException:
    """Return the time limit of which an error has come, if so, or else the error.

    Django leaves a block by set_autocommit(), also when its COMMIT was interrupted, and
    what that raises hides what came before: on stock as here.
    """
    cause: BaseException | None = raised
    while cause is not None:
        if isinstance(cause, Interrupted | TimeLimit):
            return cause
        cause = cause.__context__
    return raised


class Load:
    """Requests by many threads, each in what Django makes of one."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        self.requests: list[Request] = []
        #: Which backend a thread had to itself, from when to when.
        self.spans: list[tuple[int, float, float, int]] = []
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []

    def start(self, threads: int) -> None:
        for number in range(threads):
            thread = threading.Thread(target=self._serve, args=[random.Random(number)])
            self.threads.append(thread)
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)
        if any(thread.is_alive() for thread in self.threads):
            raise SystemExit("a thread of the load did not end within a minute")

    def _serve(self, choose: random.Random) -> None:
        while True:
            # What is thrown in from outside may arrive anywhere, so also here.
            try:
                if self.stop.is_set():
                    return
                self.make_request(choose)
            except (Interrupted, TimeLimit):
                continue

    def make_request(self, choose: random.Random) -> None:
        kinds: list[Callable[[random.Random], None]]
        kinds = [self.read, self.read, self.write, self.move, self.hold, self.stream]
        kind = choose.choice(kinds)
        began = time.monotonic()
        error = None
        try:
            kind(choose)
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it is a result
            raised = thrown_in(raised)
            error = f"{type(raised).__name__}: {str(raised).strip().splitlines()[:1]}"
        finally:
            close_old_connections()
            request = Request(kind.__name__, began, time.monotonic(), error)
            self.requests.append(request)

    # ##### Kinds #####

    def read(self, choose: random.Random) -> None:
        for _ in range(3):
            self.thing.objects.get(pk=choose.randint(1, ROWS))

    def write(self, choose: random.Random) -> None:
        self.thing.objects.filter(pk=choose.randint(1, ROWS)).update(name="written")

    def move(self, choose: random.Random) -> None:
        """Take a number from one row and give it to another: the sum stays."""
        first, second = sorted(choose.sample(range(1, ROWS + 1), 2))
        with atomic(), connection.cursor() as cursor, self.alone(cursor):
            self.thing.objects.filter(pk=first).update(number=F("number") - 1)
            with atomic():
                self.thing.objects.filter(pk=second).update(number=F("number") + 1)

    def hold(self, choose: random.Random) -> None:
        with connection.cursor() as cursor, self.alone(cursor):
            cursor.execute("SELECT pg_sleep(0.002)")

    def stream(self, choose: random.Random) -> None:
        for thing in self.thing.objects.iterator(chunk_size=20):
            if thing.number == choose.randint(0, ROWS):
                break

    @contextmanager
    def alone(self, cursor: Any) -> Iterator[None]:
        """Note that this thread has a connection to itself for the block."""
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
        began = time.monotonic()
        try:
            yield
        finally:
            # Until its connection is given back it has it, whatever was raised.
            self.spans.append((pid, began, time.monotonic(), threading.get_ident()))

    def doubled(self) -> int:
        """Return how often two threads had one connection at the same time."""
        spans = sorted(self.spans)
        return sum(
            before[0] == after[0] and after[1] < before[2] and before[3] != after[3]
            for before, after in pairwise(spans)
        )
