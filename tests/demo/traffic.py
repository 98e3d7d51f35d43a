"""One run of the demo: 32 threads ask the site's page, over and over.

Runs in a process of its own, as `python -m demo.traffic LABEL SECONDS FILE`, and writes
what it measured to FILE.  Nothing here knows which engine it runs on.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, connection

from demo.run import Run

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

THREADS = 32


class Traffic:
    """The threads, and what is noted while they run."""

    def __init__(self, application: WSGIApplication, products: int, seconds: float) -> None:
        self.application = application
        self.products = products
        self.seconds = seconds
        # Appending to a list is atomic, so the threads share these without a lock.
        self.requests: list[tuple[float, float]] = []
        self.changes: list[tuple[float, int]] = []
        self._start = 0.0
        self._ready = threading.Barrier(THREADS, action=self._begin)

    def run(self, label: str, pool: Any) -> None:
        """Run all threads to their end, showing how they get on."""
        progress = Progress(label, self.seconds)
        with ThreadPoolExecutor(THREADS) as executor:
            threads = [executor.submit(self._serve, number) for number in range(THREADS)]
            while wait(threads, timeout=0.5).not_done:
                waiting = pool.get_stats()["requests_waiting"]
                if self.now() < self.seconds:
                    progress.show(self.now(), len(self.requests), waiting)
            for thread in threads:
                thread.result()
        progress.end(len(self.requests))

    def now(self) -> float:
        return time.perf_counter() - self._start

    def _begin(self) -> None:
        self._start = time.perf_counter()

    def _serve(self, number: int) -> None:
        """Be one thread of a server that is never out of work."""
        choose = random.Random(number)  # the same requests on each engine
        self._ready.wait()
        while (began := self.now()) < self.seconds:
            self._request(f"/order/{choose.randint(1, self.products)}/")
            self.requests.append((began, self.now()))

    def _request(self, path: str) -> None:
        """Make one request as a server does, from request_started to request_finished."""
        environ: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        answer: list[str] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            answer.append(status)

        response: Any = self.application(environ, start_response)
        b"".join(response)
        response.close()
        if answer != ["200 OK"]:
            raise RuntimeError(f"{path} answered {answer}")

    def watch(self, pool_class: Any) -> None:
        """Note each hand-over of a connection from here on.

        Asking the pool now and then would not do: the thread that asks runs when the
        others wait, which is when more connections are in use than at other times.
        """
        getconn, putconn = pool_class.getconn, pool_class.putconn

        def watched_getconn(pool: Any, *args: Any, **kwargs: Any) -> Any:
            taken = getconn(pool, *args, **kwargs)
            self.changes.append((self.now(), +1))
            return taken

        def watched_putconn(pool: Any, given: Any) -> None:
            self.changes.append((self.now(), -1))
            putconn(pool, given)

        pool_class.getconn, pool_class.putconn = watched_getconn, watched_putconn


class Progress:
    """A line that says how far a run is; on a terminal it is written over itself."""

    WIDTH = 24

    def __init__(self, label: str, seconds: float) -> None:
        self.label = label
        self.seconds = seconds
        self.next = 0.0
        self.live = sys.stdout.isatty()

    def show(self, elapsed: float, requests: int, waiting: int) -> None:
        """Say how many requests are done, and how many threads wait for a connection."""
        if elapsed < self.next:
            return
        self.next = elapsed + (0.5 if self.live else 2.0)
        done = round(self.WIDTH * min(elapsed / self.seconds, 1))
        bar = "#" * done + "." * (self.WIDTH - done)
        print(
            f"  {self.label:<6} [{bar}] {elapsed:4.1f} s   {requests:5,} requests"
            f"   {waiting:2} waiting",
            end="\r" if self.live else "\n",
            flush=True,
        )

    def end(self, requests: int) -> None:
        self.next = 0.0
        self.show(self.seconds, requests, 0)
        if self.live:
            print()


def main(label: str, seconds: float, file: Path) -> None:
    django.setup()
    from demo.site import OTHER_WORK, PRODUCTS, create_tables

    application = get_wsgi_application()
    create_tables()
    close_old_connections()

    wrapper: Any = connection
    pool = wrapper.pool
    traffic = Traffic(application, PRODUCTS, seconds)
    traffic.watch(type(pool))
    pool.wait()
    pool.pop_stats()
    traffic.run(label, pool)
    stats = pool.get_stats()
    pool.close()

    Run(
        engine=settings.DATABASES["default"]["ENGINE"],
        seconds=seconds,
        threads=THREADS,
        connections=pool.max_size,
        other_work=OTHER_WORK,
        requests=traffic.requests,
        changes=traffic.changes,
        checkouts=stats["requests_num"],
        checkouts_waited=stats.get("requests_queued", 0),
        waited=stats.get("requests_wait_ms", 0) / 1000,
    ).write(file)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
