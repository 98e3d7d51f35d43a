"""R3, R6: what is noted of the garbage collector costs nobody an exception."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections
from helpers import DEADLINE, backend_pid, census, run_in_thread
from leases import Stop

import django_pg_real_pool
from django_pg_real_pool._process import collector

pytest_plugins = ["fix_traffic"]

OURS = os.path.dirname(django_pg_real_pool.__file__)


class Witness:
    """Calls somebody when it is collected, because it is in a cycle."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.me = self
        self.call = call

    def __del__(self) -> None:
        self.call()


@contextmanager
def only_by_hand() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_thread_collects_between_start_and_stop() -> None:
    """R6: and no other thread does meanwhile."""
    seen: list[tuple[bool, bool]] = []

    def look() -> None:
        here = collector.here.is_at_work
        seen.append((here, run_in_thread(lambda: collector.here.is_at_work)))

    def lose_and_collect() -> None:
        Witness(look)
        gc.collect()

    with only_by_hand():
        for _ in range(2):
            look()
            lose_and_collect()
        run_in_thread(lose_and_collect)
        look()
    no, yes = (False, False), (True, False)
    assert seen == [no, yes, no, yes, yes, no]


def test_while_one_thread_collects_another_releases_at_once(warm: str) -> None:
    """R1: a finaliser may take its time."""
    is_collecting, may_end = threading.Event(), threading.Event()

    def take_time() -> None:
        is_collecting.set()
        assert may_end.wait(DEADLINE)

    def collect() -> None:
        Witness(take_time)
        gc.collect()

    with only_by_hand(), ThreadPoolExecutor(1) as executor:
        collecting = executor.submit(collect)
        try:
            assert is_collecting.wait(DEADLINE)
            backend_pid(warm)
            assert connections[warm].connection is None
            assert census(warm).in_use == 0
        finally:
            may_end.set()
        collecting.result()


def test_no_code_of_ours_runs_when_python_collects() -> None:
    """R3: where there is none, nothing can be thrown into it."""
    called: list[str] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            called.append(frame.f_code.co_name)

    gc.collect()  # what other tests have left has finalisers, which are no callbacks
    sys.setprofile(profile)
    try:
        gc.collect()
    finally:
        sys.setprofile(None)
    assert not called


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_a_time_limit_is_not_lost_while_python_collects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R3: each signal whose handler raises is heard by who is interrupted."""
    raised = heard = 0
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)

    def stop(*args: Any) -> None:
        nonlocal raised
        raised += 1
        raise Stop

    # Only ours: what other packages put there (Hypothesis does) may be written in
    # Python, and swallows what strikes in it.
    callbacks = list(gc.callbacks)
    gc.callbacks[:] = [collector._callback]
    before = signal.signal(signal.SIGALRM, stop)
    gc.collect()  # finalisers of what other tests have left are no callbacks of ours
    began = time.monotonic()
    try:
        with only_by_hand():
            # Each collection of a free-threaded build is a full one, and slow.
            while (passed := time.monotonic() - began) < 1 or (heard <= 10 and passed < 30):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-4)
                    for _ in range(1000):
                        gc.collect(0)
                except Stop:
                    heard += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.callbacks[:] = callbacks
    assert heard > 10
    assert (heard, ignored) == (raised, [])
