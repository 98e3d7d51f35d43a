"""Servers and workers as real processes, and what the database sees of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from helpers import wait_until
from places import PYTHON_PATH

#: Seconds that a process has for its end, when it is asked to.
FAREWELL = 15


class Running:
    """A process, its log, and its folder, where it may have a socket."""

    def __init__(self, name: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.folder = folder
        self.process = process

    @property
    def socket(self) -> str:
        return str(self.folder / "socket")

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def is_ready(self, asks: Callable[[], bool]) -> Callable[[], bool]:
        """Return a condition to wait for, which fails when the process has ended."""

        def condition() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"it ended before it was ready:\n{self.log}")
            return asks()

        return condition

    def connections(self) -> dict[int, str]:
        """Return the server process and the state of each connection that it has."""
        with psycopg.connect(autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pid, state FROM pg_stat_activity WHERE application_name = %s",
                [self.name],
            )
            return dict(rows)

    def assert_idle(self, at_most: int) -> None:
        """Assert that no connection is in use, and that there are not too many."""
        wait_until(
            lambda: set(self.connections().values()) <= {"idle"},
            f"all connections are idle, but {Counter(self.connections().values())}",
        )
        assert len(self.connections()) <= at_most


@contextmanager
def running(arguments: list[str], settings: Mapping[str, object]) -> Iterator[Running]:
    """Run a Python module with the site, whose settings are `SITE_*`; end it at the end.

    It must end when it is asked to, and its connections with it.
    """
    name = f"site-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix=name) as directory:
        folder = Path(directory)
        environment = {
            **os.environ,
            "PYTHONPATH": PYTHON_PATH,
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "neighbours.site.settings",
            "SITE_NAME": name,
            **{f"SITE_{key}": str(value) for key, value in settings.items()},
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=folder,  # not the checkout: what is installed is what is meant
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(name, folder, process)
        try:
            yield running
        except BaseException:
            print(f"The log of {arguments} ends with:\n{running.log[-20_000:]}")
            raise
        finally:
            has_ended = _end(process)
        assert has_ended, f"it did not end in {FAREWELL} s:\n{running.log[-20_000:]}"
        wait_until(lambda: not running.connections(), f"{name} has no connection any more")


def _end(process: subprocess.Popen[bytes]) -> bool:
    """Ask a process to end, and return whether it did; kill all that is left of it."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(FAREWELL)
    has_ended = process.poll() is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its own session: nobody else is in it
    process.wait()
    return has_ended


def all_of(backends_of: Mapping[Any, set[int]]) -> set[int]:
    return {pid for backends in backends_of.values() for pid in backends}


def disjoint(backends_of: Mapping[Any, set[int]]) -> bool:
    """Return whether no server process is in two of the sets."""
    return len(all_of(backends_of)) == sum(map(len, backends_of.values()))
