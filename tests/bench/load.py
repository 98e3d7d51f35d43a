"""One run: threads that make requests, over and over, on one engine.

Runs as `python -m bench.load ENGINE FILE`, with a `Load` as JSON on standard input, and
writes a `Result` to FILE.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from django.db import Error, close_old_connections, connections
from django.template import Context, Engine

from bench.site import create_table, database, model, set_up

PAGE = """
{% for row in rows %}<li class="{% cycle 'odd' 'even' %}">{{ row }}: {{ thing.name|title }}</li>
{% endfor %}
"""


@dataclass(frozen=True)
class Load:
    """What is to be done."""

    threads: int
    #: In the pool; None: no pool, a connection for each thread.
    connections: int | None
    #: Milliseconds that a request is busy elsewhere, in equal parts between its queries.
    other_work: float
    queries: int
    seconds: float
    #: Of the page that a request renders, which keeps the process itself busy; 0: no page.
    rows: int = 0
    #: Settings of the alias besides, as for a pooler in front of the server.
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    engine: str
    load: Load
    requests_per_second: float
    #: Milliseconds that a request took.
    p50: float
    p99: float
    failed: int


class Run:
    def __init__(self, load: Load, thing: Any) -> None:
        self.load = load
        self.thing = thing
        self.page = Engine().from_string(PAGE)
        self.took: list[float] = []
        #: Those of them that ended before the run did.
        self.in_time = 0
        self.failed = 0
        self.end = 0.0
        self.ready = threading.Barrier(load.threads, action=self.begin)

    def begin(self) -> None:
        self.end = time.perf_counter() + self.load.seconds

    def serve(self, number: int) -> None:
        choose = random.Random(number)
        pause = self.load.other_work / 1000 / max(1, self.load.queries - 1)
        self.ready.wait()
        if pause:
            time.sleep(choose.random() * pause * 2)  # not all in step
        while (began := time.perf_counter()) < self.end:
            try:
                self.request(choose, pause)
            except Error:
                self.failed += 1
            else:
                ended = time.perf_counter()
                self.took.append((ended - began) * 1000)
                self.in_time += ended <= self.end
        connections.close_all()

    def request(self, choose: random.Random, pause: float) -> None:
        for query in range(self.load.queries):
            if query and pause:
                time.sleep(pause)
            thing = self.thing.objects.get(pk=choose.randint(1, 100))
        if self.load.rows:
            self.page.render(Context({"thing": thing, "rows": range(self.load.rows)}))
        close_old_connections()


def main(engine: str, file: Path) -> None:
    load = Load(**json.load(sys.stdin))
    set_up({"default": database(engine, load.connections, **load.settings)})
    thing = model()
    create_table(thing)
    connections.close_all()
    run = Run(load, thing)
    with ThreadPoolExecutor(load.threads) as executor:
        for future in [executor.submit(run.serve, n) for n in range(load.threads)]:
            future.result()
    cuts = statistics.quantiles(run.took, n=100, method="inclusive")
    result = Result(
        engine, load, run.in_time / load.seconds, cuts[49], cuts[98], run.failed
    )
    file.write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
