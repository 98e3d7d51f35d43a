"""Queries under real signals whose handler raises, on stock and on ours.

    python tests/support/signal_storm.py [--seconds 15] [--engine native]

Prints, for each engine: requests, signals, locks that were left held, exceptions that were
printed as ignored or swallowed, connections that the pool missed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

ENGINES = ("stock_native", "native")
SIZE = 4
TIMEOUT = 1.0

#: Seconds between a request's begin and its signal.
SOON, LATE = 50e-6, 500e-6


#: Seconds after which something that a request does is taken for a hang.
HANGING = 5.0


class Stop(BaseException):
    """What the handler raises."""


class Hang(BaseException):
    """What the handler raises later: something waits for a lock that nobody will release."""


@dataclass
class Result:
    engine: str
    python: str = ".".join(map(str, sys.version_info[:3]))
    requests: int = 0
    #: Handlers that have raised.
    signals: int = 0
    #: Locks that nobody could acquire any more, in the pool and in leases.
    pool_locks: int = 0
    lease_locks: int = 0
    #: Exceptions that Python printed, because nobody could be told.
    ignored: int = 0
    #: Exceptions of which nobody heard.
    swallowed: int = 0
    #: Connections that the pool missed: when it was exhausted, or in the end.
    lost: int = 0
    #: Where something has waited for ever, and how often.
    hangs: dict[str, int] = field(default_factory=dict)
    #: What else was raised.
    errors: dict[str, int] = field(default_factory=dict)


def has_stopped(error: BaseException | None, seen: int = 0) -> bool:
    while error is not None and seen < 100:
        if isinstance(error, Stop):
            return True
        error, seen = error.__context__ or error.__cause__, seen + 1
    return False


class Storm:
    def __init__(self, engine: str) -> None:
        from django.db import connections

        self.result = Result(engine)
        self.alias = engine
        self.connections = connections
        options = connections.settings[engine]["OPTIONS"]
        options["pool"] = {"min_size": SIZE, "max_size": SIZE, "timeout": TIMEOUT}
        self.others = ThreadPoolExecutor(1)
        self.errors: Counter[str] = Counter()
        self.hangs: Counter[str] = Counter()
        #: Whether the next signal says that something hangs.
        self.is_guarding = False

    def guard(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.is_guarding = True
        signal.setitimer(signal.ITIMER_REAL, HANGING)

    @property
    def wrapper(self) -> Any:
        return self.connections[self.alias]

    def run(self, seconds: float) -> Result:
        result = self.result

        def stop(number: int, frame: Any) -> None:
            if self.is_guarding:
                self.hangs[f"{frame.f_code.co_filename}:{frame.f_lineno}"] += 1
                self.guard()  # what comes next may hang as well
                raise Hang
            self.guard()
            result.signals += 1
            raise Stop

        def count_ignored(unraisable: Any) -> None:
            if isinstance(unraisable.exc_value, Stop):
                result.ignored += 1
                place = traceback.extract_tb(unraisable.exc_traceback)[0]
                where = f"{place.filename}:{place.lineno}".split("site-packages/")[-1]
                what = unraisable.err_msg or f"ignored in {unraisable.object!r:.80}"
                self.errors[f"{what}, at {where}"] += 1

        sys.unraisablehook = count_ignored
        signal.signal(signal.SIGALRM, stop)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.run_one(random.uniform(SOON, LATE))
            result.requests += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.look_for_lost()
        result.hangs = {
            where.split("site-packages/")[-1]: n for where, n in self.hangs.items()
        }
        result.errors = dict(self.errors)
        return result

    def run_one(self, after: float) -> None:
        result, heard, raised = self.result, False, self.result.signals
        ignored = result.ignored
        try:
            try:
                self.is_guarding = False
                signal.setitimer(signal.ITIMER_REAL, after)
                self.request()
            finally:
                self.guard()
        except Hang:
            self.replace_pool()
            heard = True
        except BaseException as error:  # noqa: BLE001 - whatever a request may raise
            heard = has_stopped(error)
            if not heard:
                self.errors[type(error).__name__] += 1
        if result.signals > raised and not heard and result.ignored == ignored:
            result.swallowed += 1
        try:
            self.guard()
            self.look_at_locks()
            self.end_request()
        except Hang:
            self.replace_pool()

    def request(self) -> None:
        from django.db import transaction

        if random.random() < 0.5:
            self.query()
        else:
            with transaction.atomic(using=self.alias):
                self.query()
        if self.alias.startswith("stock"):  # ours has given it back
            self.wrapper.close()

    def query(self) -> None:
        with self.wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")

    def end_request(self) -> None:
        from django.db import OperationalError

        wrapper = self.wrapper
        wrapper.in_atomic_block = False
        try:
            wrapper.close()
            self.query()
        except OperationalError:
            self.look_for_lost()
            self.replace_pool()
        except Exception as error:  # noqa: BLE001 - counted
            self.errors[f"at the end: {type(error).__name__}"] += 1
            self.replace_pool()
        finally:
            try:
                wrapper.close()
            except Exception as error:  # noqa: BLE001 - counted
                self.errors[f"in close(): {type(error).__name__}"] += 1
                wrapper.connection = None

    def look_at_locks(self) -> None:
        pool = self.wrapper._connection_pools.get(self.alias)
        if pool is not None and not self.is_free(pool._lock):
            self.result.pool_locks += 1
            self.replace_pool()
        lease = getattr(self.wrapper, "_lease", None)
        if lease is not None and not (self.is_free(lease._lock) and lease._holder == 0):
            self.result.lease_locks += 1
            del self.connections[self.alias]

    def is_free(self, lock: Any) -> bool:
        def can_be_had() -> bool:
            had: bool = lock.acquire(timeout=1)
            if had:
                lock.release()
            return had

        return self.others.submit(can_be_had).result()

    def look_for_lost(self) -> None:
        """Wait until the pool has its size, or longer than the reaper takes."""
        pool = self.wrapper._connection_pools.get(self.alias)
        until = time.monotonic() + 3
        while pool is not None:
            stats = pool.get_stats()
            missing = stats["pool_size"] - stats["pool_available"]
            if missing == 0:
                return
            if time.monotonic() > until:
                self.result.lost += missing
                return
            time.sleep(0.01)

    def replace_pool(self) -> None:
        """Leave the pool as it is, where its lock can't be had: nobody could close it."""
        self.guard()
        wrapper = self.wrapper
        wrapper.connection = None
        wrapper._connection_pools.pop(self.alias, None)
        del self.connections[self.alias]


def run_alone(engine: str, seconds: float) -> Result:
    """Run one engine in a process of its own."""
    command = [sys.executable, __file__, f"--seconds={seconds}", f"--engine={engine}"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(output, end="", flush=True)
    return Result(**json.loads(output.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15, help="for each engine")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    options = parser.parse_args()
    engines = options.engine or ENGINES
    if len(engines) > 1:
        stock, ours = (run_alone(each, options.seconds) for each in engines)
        wrong = [
            f"{name}: {getattr(ours, name)}, on stock {getattr(stock, name)}"
            for name in ("pool_locks", "lease_locks", "ignored", "swallowed", "lost")
            if getattr(ours, name) > getattr(stock, name)
        ]
        hangs, of_stock = sum(ours.hangs.values()), sum(stock.hangs.values())
        if hangs > of_stock:
            wrong.append(f"hangs: {hangs}, on stock {of_stock}")
        print("\n".join(wrong or ["Ours is no worse than stock."]))
        return 1 if wrong else 0

    from server import DATABASE, create_database, provide_server

    provide_server()
    os.environ["PGDATABASE"] = DATABASE
    create_database()
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    import logging

    import django

    django.setup()
    logging.disable()
    faulthandler.dump_traceback_later(
        options.seconds * 3 + 20, exit=True
    )  # all else failed
    result = Storm(engines[0]).run(options.seconds)
    print(json.dumps(asdict(result)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
