"""What is done where something is not there: an optional package, a system call."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from faults import extra_alias
from helpers import backend_pid

from django_pg_real_pool import pool_status
from django_pg_real_pool._drivers.sockets import peeker, waiter
from django_pg_real_pool._process import fork


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


@pytest.mark.parametrize("lacking", ["nothing", "ctypes", "poll"])
def test_a_socket_is_looked_at_with_what_there_is(
    lacking: str, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: whatever the system has, something to read is seen, and so is the end."""
    if lacking != "nothing":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    if lacking == "poll":
        monkeypatch.delattr(select, "poll")
    mine, other = pair
    looks: list[Callable[[], Any]]
    wait = waiter(mine.fileno())
    looks = [peeker(mine.fileno()), lambda: wait(0.01)]

    assert not any(look() for look in looks)
    other.send(b"x")
    assert all(look() for look in looks)
    mine.recv(1)
    assert not any(look() for look in looks)
    other.close()
    assert all(look() for look in looks)


@pytest.mark.parametrize("lacking", ["nothing", "ctypes", "poll"])
def test_a_closed_socket_is_to_be_looked_at(
    lacking: str, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F2: poll() tells that it is closed; select(), as on Windows, raises."""
    if lacking != "nothing":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    if lacking == "poll":
        monkeypatch.delattr(select, "poll")
    mine, _ = pair
    # Far from those that other threads may open meanwhile.
    high = 900
    os.dup2(mine.fileno(), high)
    looks: list[Callable[[], Any]] = [peeker(high), partial(waiter(high), 0.01)]
    assert not any(look() for look in looks)
    os.close(high)
    assert all(look() for look in looks)


def test_a_socket_without_a_number_is_to_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F2: -1 is what a closed socket of Python's says; select() takes it for an error."""
    monkeypatch.delattr(select, "poll")
    assert waiter(-1)(0.0)


def test_where_nothing_forks_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1: as on Windows."""
    monkeypatch.delattr(os, "register_at_fork")
    fork.watch()


def test_a_missing_pool_package_is_djangos_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """D1: it says what to install."""
    with extra_alias("poolless_native", "native", connects=False) as name:
        monkeypatch.setitem(sys.modules, "psycopg_pool", None)
        with pytest.raises(ImproperlyConfigured, match=r"psycopg\[pool\]"):
            connections[name].cursor()
        monkeypatch.undo()


@pytest.mark.parametrize("alias", ["native", "dj"], indirect=True)
def test_a_pool_that_is_not_there_yet_has_no_census(alias: str) -> None:
    """P3: to ask makes none."""
    with extra_alias(f"unused_{alias}", alias) as name:
        status = pool_status(name)
        assert (status.leases, status.census.size) == ((), None)
        backend_pid(name)
        assert pool_status(name).census.size is not None


def test_the_test_kit_does_without_pytest() -> None:
    """Its context managers are for any test runner."""
    program = (
        "import sys; sys.modules['pytest'] = None; import django_pg_real_pool.testing as kit;"
        "print(kit.no_leases is not None, hasattr(kit, 'real_pool_no_leases'))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "True False\n", ran.stderr
