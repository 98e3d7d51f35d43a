"""F1, F3, P3: greenlets that stand for threads, as a thread plays them here.

`nox -s "neighbours(gevent)"` does the same with real ones.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from _thread import get_ident
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from configured import configured, error, found
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from helpers import backend_pid, run_in_thread

from django_pg_real_pool import pin_connection, pool_status
from django_pg_real_pool._drivers import psycopg3
from django_pg_real_pool._pools.real_pool import RealPool
from django_pg_real_pool._process import greenlets, reaper
from django_pg_real_pool._process.greenlets import Green

LATE = (
    "Python was patched, by gevent or eventlet, after Django or django_pg_real_pool was "
    "imported, so these take all greenlets for one thread."
)
REMEDY = (
    "Patch before Django is imported: at the top of manage.py or of a worker's module; "
    "for gunicorn's --preload, in gunicorn.conf.py."
)


class Greenlet:
    """As much of a greenlet as is asked for."""

    def __init__(self) -> None:
        self.dead = False
        self.gr_frame: FrameType | None = None


class Stopped(Exception):
    """Raised where something would wait for ever."""


@pytest.fixture
def greenlet(monkeypatch: pytest.MonkeyPatch) -> Greenlet:
    """What every thread is in a process where somebody has imported greenlet."""
    one = Greenlet()
    module = SimpleNamespace(getcurrent=lambda: one)
    monkeypatch.setitem(sys.modules, "greenlet", module)
    return one


@pytest.fixture
def green(greenlet: Greenlet, monkeypatch: pytest.MonkeyPatch) -> Greenlet:
    """The same where Python is patched."""
    patched = SimpleNamespace(get_ident=lambda: id(greenlet))
    monkeypatch.setattr(greenlets, "_thread", patched)
    monkeypatch.setattr(greenlets, "get_ident", patched.get_ident)
    return greenlet


def test_a_thread_is_a_thread_though_greenlet_was_imported(greenlet: Greenlet) -> None:
    """As SQLAlchemy does: many greenlets may share a thread, and its wrapper."""
    assert greenlets.current() is threading.current_thread()


def test_what_a_dead_greenlet_holds_is_given_back(alias: str, green: Greenlet) -> None:
    """F3: though its thread lives."""
    with configured(alias) as wrapper, pin_connection("configured"):
        reaper.reap()
        assert wrapper.connection is not None
        green.dead = True
        reaper.reap()
        assert wrapper.connection is None


def test_a_greenlet_that_was_collected_is_dead() -> None:
    """F3: it is not kept for that."""
    one = Greenlet()
    owner = Green(one)
    assert owner.is_alive()
    del one
    assert not owner.is_alive()
    assert owner.frame() is None


def test_the_status_tells_where_a_greenlet_is(alias: str, green: Greenlet) -> None:
    """P3: where it was left; or here, if it is the one that asks."""
    with configured(alias), pin_connection("configured"):
        (lease,) = pool_status("configured").leases
        assert lease.thread == "MainThread"
        assert "in test_the_status_tells_where_a_greenlet_is" in str(lease.where)

        here = sys._getframe()
        sys.modules["greenlet"].getcurrent = lambda: None  # type: ignore[attr-defined]
        green.gr_frame = run_in_thread(sys._getframe)
        (lease,) = pool_status("configured").leases
        assert "in run" in str(lease.where)
        green.gr_frame = here


def test_a_greenlet_has_the_name_that_gevent_gives_it(green: Any) -> None:
    """P3: but for a thread that the user has named."""
    names = {}

    def look(name: str) -> None:
        threading.current_thread().name = name
        names[name] = Green(green).name

    green.name = "Greenlet-7"
    for each in ("Dummy-3", "the user's"):
        run_in_thread(lambda each=each: look(each))  # type: ignore[misc]
    del green.name
    run_in_thread(lambda: look("Dummy-4"))
    assert names == {
        "Dummy-3": "Greenlet-7",
        "the user's": "the user's",
        "Dummy-4": "Dummy-4",
    }


# ##### Patched too late #####


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    patched = SimpleNamespace(get_ident=lambda: 7)
    monkeypatch.setattr(greenlets, "_thread", patched)


@pytest.mark.usefixtures("late")
def test_what_was_imported_before_patching_is_refused(alias: str) -> None:
    """It would hang, for all greenlets."""
    with configured(alias) as wrapper:
        with pytest.raises(ImproperlyConfigured) as caught:
            backend_pid("configured")
        assert str(caught.value) == f"{LATE} {REMEDY}"
        assert wrapper.connection is None


def test_django_may_have_been_imported_before_patching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only its first greenlet would have been served: in gunicorn's --preload, for one."""
    assert not greenlets._came_after_django()  # nothing is patched

    class Patched(threading.local):
        pass

    monkeypatch.setattr(threading, "local", Patched)
    assert greenlets._came_after_django()
    monkeypatch.setattr(greenlets, "_DJANGO_WAS_EARLIER", True)
    with pytest.raises(ImproperlyConfigured):
        greenlets.refuse_if_late()
    # Where asgiref keeps it elsewhere, nothing is said.
    monkeypatch.setattr(greenlets, "connections", SimpleNamespace(_connections=None))
    assert not greenlets._came_after_django()


@pytest.mark.usefixtures("late")
def test_a_check_finds_what_was_imported_before_patching(alias: str) -> None:
    """D7: E011."""
    assert found(alias) == [error(11, LATE, REMEDY)]


def test_a_check_warns_where_psycopg_blocks(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: W008, where Python is patched and psycopg waits in C."""
    waiting = SimpleNamespace(wait=None)
    monkeypatch.setitem(sys.modules, "psycopg.waiting", waiting)
    in_c = object()

    def warnings() -> list[checks.CheckMessage]:
        return [each for each in found(alias) if each.id == "django_pg_real_pool.W008"]

    waiting.wait = waiting.wait_c = in_c
    assert not psycopg3.blocks_greenlets()  # nothing is patched
    monkeypatch.setattr(psycopg3, "_thread", SimpleNamespace(get_ident=lambda: 7))
    assert warnings() == [
        checks.Warning(
            "Database 'configured': psycopg would block all greenlets while it waits for "
            "the server.",
            hint="With gevent, patch before psycopg is imported. With eventlet, set the "
            "environment variable PSYCOPG_WAIT_FUNC to wait_select.",
            id="django_pg_real_pool.W008",
        )
    ]
    waiting.wait = object()
    assert not psycopg3.blocks_greenlets()
    del waiting.wait_c  # psycopg in Python alone
    assert not psycopg3.blocks_greenlets()


# ##### Forked #####


@pytest.fixture
def parked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise where a greenlet would wait for ever."""

    class Lock:
        def __init__(self) -> None:
            self.acquired = 0

        def acquire(self) -> bool:
            self.acquired += 1
            if self.acquired > 1:
                raise Stopped
            return True

    patched = SimpleNamespace(allocate_lock=Lock, get_ident=get_ident)
    monkeypatch.setattr(greenlets, "_thread", patched)


@pytest.mark.usefixtures("parked")
def test_the_copy_of_a_reaper_rests_and_leaves_its_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F1: what the parent has noted concerns the parent's connections."""
    done: list[str] = []

    class Tasks:
        """A queue whose reader was copied while it was waiting."""

        def get(self, timeout: float) -> Any:
            reaper.forget()
            return lambda: done.append("of the parent")

    for name in ("_tasks", "_starter"):  # which forget() replaces
        monkeypatch.setattr(reaper, name, getattr(reaper, name))
    monkeypatch.setattr(reaper, "_tasks", Tasks())
    with pytest.raises(Stopped):
        reaper._run()
    assert not done


def waiting_frame(file: int) -> FrameType:
    """Return a frame of a function of psycopg's, below one of ours."""
    code = "def wait(fileno):\n    import sys\n    return sys._getframe()"
    psycopgs: dict[str, Any] = {"__name__": "psycopg.waiting"}
    exec(code, psycopgs)  # noqa: S102
    frame: FrameType = psycopgs["wait"](file)
    return frame


@pytest.fixture
def pool() -> Iterator[RealPool]:
    with configured("native", OPTIONS={"pool": {"min_size": 1, "max_size": 2}}):
        backend_pid("configured")
        pool: Any = connections["configured"].pool  # type: ignore[attr-defined]
        yield pool
        pool._closed = False


def test_what_greenlets_are_connecting_is_cut_off_in_a_child(pool: RealPool) -> None:
    """F1: a fork copies them, and they would go on talking on the parent's socket."""
    ours, servers = socket.socketpair()
    connecting, elsewhere = Greenlet(), Greenlet()
    connecting.gr_frame = waiting_frame(ours.fileno())
    elsewhere.gr_frame = sys._getframe()
    pool._connecting = {Green(connecting), Green(elsewhere), threading.current_thread()}
    with ours, servers:
        copy = os.dup(ours.fileno())  # the parent's
        pool.abandon()
        assert pool.closed
        with suppress(BrokenPipeError):
            ours.send(b"from the child")
        os.write(copy, b"from the parent")
        assert servers.recv(99) == b"from the parent"
        os.close(copy)
    pool._connecting = set()


@pytest.mark.usefixtures("parked")
def test_a_copied_greenlet_that_was_connecting_tries_no_more(
    pool: RealPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F1: the pool that it connects for is nobody's."""
    pool.abandon()
    monkeypatch.setattr(pool, "kwargs", {"host": "nowhere.invalid"})
    monkeypatch.setattr(pool, "_kwargs", {"host": "nowhere.invalid"}, raising=False)
    with pytest.raises(Stopped):
        pool._connect()
    assert threading.current_thread() not in pool._connecting  # but a worker may be
