"""Throws an exception into a program, at each moment where Python could deliver one."""

from __future__ import annotations

import dis
import gc
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any

import psycopg_pool
from django.db import DatabaseError, connections
from django.db.transaction import atomic
from helpers import run_in_thread
from leases import ROWS, Stop
from moments import can_be_hit

import django_pg_real_pool
from django_pg_real_pool import pin_connection

#: What is interrupted: this library, and the pool beneath it.
WATCHED = (*django_pg_real_pool.__path__, *psycopg_pool.__path__)

#: Of how many moments one is visited; all of them with 1.
EVERY = int(os.environ.get("REAL_POOL_EVERY", "199"))
SEED = int(os.environ.get("REAL_POOL_SEED", "0"))
SAMPLE = f"REAL_POOL_EVERY={EVERY} REAL_POOL_SEED={SEED}"

Tick = Callable[[str, "FrameType | None"], None]


def is_watched(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(WATCHED)


def with_contexts(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def first_of(every: int) -> int:
    """Return the first moment to be visited, if that is to be each so many."""
    return random.Random(SEED).randrange(every) + 1


class Hit:
    """Where an interruption hit, if it did."""

    def __init__(self) -> None:
        self.place = ""

    def __bool__(self) -> bool:
        return bool(self.place)

    def __str__(self) -> str:
        return self.place


def interrupt(moment: int, run: Callable[[], Any], by_bytecode: bool = False) -> Hit:
    """Throw Stop into `run` at its `moment`-th moment, counted from 1.

    The moments are where watched code calls or is called, and where a built-in that it
    called has returned: there the interpreter looks for signals.  With `by_bytecode` they
    are all bytecodes of watched code, and each return to it: of what Python promises to
    nobody, the utmost.  The result is false if `run` came to its end before.
    """
    hit, moments = Hit(), 0

    def tick(event: str, frame: FrameType | None) -> None:
        nonlocal moments
        moments += 1
        if moments == moment:
            hit.place = f"{event} at {describe(frame)}"
            raise Stop

    if not by_bytecode:
        watching = _calls(tick, hit)
    elif sys.version_info >= (3, 12):
        watching = _instructions(tick, hit)
    else:
        watching = _opcodes(tick, hit)
    gc.disable()  # a finaliser is not what is to be interrupted
    try:
        with watching:
            run()
    except BaseException as error:
        # What a block raises at its end, on top, is its own affair, as in stock.
        if Stop not in map(type, with_contexts(error)):
            raise
    finally:
        gc.enable()
    return hit


def describe(frame: FrameType | None) -> str:
    while frame is not None and not is_watched(frame):
        frame = frame.f_back
    if frame is None:
        return "the end"
    code, offset = frame.f_code, frame.f_lasti
    name = dis.opname[code.co_code[offset]] if offset >= 0 else "entry"
    file = os.path.basename(code.co_filename)
    return f"{file}:{frame.f_lineno} {code.co_name}() {name} {offset}"


@contextmanager
def _calls(tick: Tick, hit: Hit) -> Iterator[None]:
    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if hit:
            return
        if (event == "call" and (is_watched(frame) or is_watched(frame.f_back))) or (
            event == "c_return" and is_watched(frame)
        ):
            name = getattr(argument, "__name__", frame.f_code.co_name)
            tick(f"{event} {name}", frame)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextmanager
def _opcodes(tick: Tick, hit: Hit) -> Iterator[None]:
    """Before Python 3.12: by what debuggers use."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if hit or not is_watched(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace_opcode

    def trace_opcode(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and not hit:
            tick("before", frame)
        return trace_opcode

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if hit:
            return
        if event == "c_return" and is_watched(frame):
            tick(f"return of {argument.__name__}", frame)
        elif event == "return" and is_watched(frame.f_back) and not is_watched(frame):
            tick(f"return of {frame.f_code.co_name}", frame.f_back)

    tracing, profiling = sys.gettrace(), sys.getprofile()
    sys.setprofile(profile)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(tracing)
        sys.setprofile(profiling)


@contextmanager
def _instructions(tick: Tick, hit: Hit) -> Iterator[None]:
    """From Python 3.12 on.  Coverage may be measured by the same means at the same time."""
    from _thread import get_ident

    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    events, me, tool = monitoring.events, get_ident(), 3
    unwatched = monitoring.DISABLE

    def is_next(code: CodeType) -> bool:
        return not hit and get_ident() == me and code.co_filename.startswith(WATCHED)

    def before(code: CodeType, offset: int) -> Any:
        if is_next(code) and can_be_hit(code, offset):
            tick("before", sys._getframe(1))
        return None if code.co_filename.startswith(WATCHED) else unwatched

    def at_call(code: CodeType, offset: int, function: Any, argument: Any) -> Any:
        return None if code.co_filename.startswith(WATCHED) else unwatched

    def after_built_in(code: CodeType, offset: int, function: Any, argument: Any) -> Any:
        if is_next(code):
            tick(f"return of {getattr(function, '__name__', function)}", sys._getframe(1))

    def at_return(code: CodeType, offset: int, value: Any) -> Any:
        if code.co_filename.startswith(WATCHED):
            return unwatched  # the bytecode before was a moment already
        caller = sys._getframe(1).f_back
        if not hit and get_ident() == me and is_watched(caller):
            tick(f"return of {code.co_name}", caller)
        return None

    monitoring.use_tool_id(tool, "interruptions")
    callbacks = {
        events.INSTRUCTION: before,
        events.CALL: at_call,
        events.C_RETURN: after_built_in,
        events.PY_RETURN: at_return,
    }
    for event, callback in callbacks.items():
        monitoring.register_callback(tool, event, callback)
    monitoring.set_events(tool, events.INSTRUCTION | events.CALL | events.PY_RETURN)
    try:
        yield
    finally:
        monitoring.set_events(tool, events.NO_EVENTS)
        for event in callbacks:
            monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)


class Seized:
    """A lock whose holder is interrupted as soon as it has it, as from Python 3.14 on."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.release = self._lock.release

    def acquire(self, blocking: bool = True) -> bool:
        self._lock.acquire()
        raise Stop

    __enter__ = acquire

    def __exit__(self, *args: object) -> None:
        self.release()

    def is_free(self) -> bool:
        """Return whether another thread can have it."""

        def try_it() -> bool:
            if not self._lock.acquire(blocking=False):
                return False
            self._lock.release()
            return True

        return run_in_thread(try_it)


# ##### What is interrupted #####


def query_all(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")


def block_all(alias: str) -> None:
    with atomic(using=alias), atomic(using=alias):
        query_all(alias)


def pin_all(alias: str) -> None:
    with pin_connection(alias):
        query_all(alias)


def iterate_all(alias: str) -> None:
    with connections[alias].chunked_cursor() as cursor:
        cursor.execute(ROWS.format(10))
        cursor.fetchone()
        query_all(alias)


def commit_all(alias: str) -> None:
    wrapper = connections[alias]
    wrapper.set_autocommit(False)
    query_all(alias)
    wrapper.commit()
    wrapper.set_autocommit(True)


def close_all(alias: str) -> None:
    cursor = connections[alias].cursor()
    cursor.execute("SELECT 1")
    connections[alias].close()


def connect_all(alias: str) -> None:
    connections[alias].ensure_connection()
    query_all(alias)


def drop_all(alias: str) -> None:
    connections[alias].cursor()
    query_all(alias)


PROGRAMS: list[Callable[[str], None]] = [
    *(query_all, block_all, pin_all, iterate_all),
    *(commit_all, close_all, connect_all, drop_all),
]


def fail_all(alias: str) -> None:
    with suppress(DatabaseError), atomic(using=alias):
        connections[alias].cursor().execute("SELECT 1/0")


def change_session_all(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SET lock_timeout = 1000")
    connections[alias].close()


def die_all(alias: str) -> None:
    """The connection dies in use."""
    with suppress(DatabaseError), connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


#: What goes wrong by itself, and is interrupted on top.
FAILING: list[Callable[[str], None]] = [fail_all, change_session_all, die_all]
