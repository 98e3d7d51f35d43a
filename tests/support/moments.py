"""Breaks into a running program at each of its moments: to raise, or to do something.

A moment is a bytecode of the modules that are named: what a signal handler or a time limit
can come between.
"""

from __future__ import annotations

import dis
import gc
import os
import sys
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from types import CodeType, FrameType, ModuleType
from typing import Any

from leases import Stop

#: From Python 3.14 on it follows a branch, and may be outside of the `try` that this is in.
_NOT_TAKEN = dis.opmap.get("NOT_TAKEN")


def can_be_hit(code: CodeType, offset: int) -> bool:
    """Return whether an exception can be thrown before a bytecode: not where none is looked for."""
    return code.co_code[offset] != _NOT_TAKEN


def files_of(*modules: ModuleType) -> frozenset[str]:
    return frozenset(str(module.__file__) for module in modules)


class Break:
    """Does `action` once, at the `moment`-th moment of what runs in `files`."""

    def __init__(self, moment: int, files: frozenset[str], action: Callable[[], object]):
        self._left = moment
        self._files = files
        self._action = action
        #: Where it was; None: what ran came to its end before.
        self.where: str | None = None
        #: Who traces this thread besides: the measuring of coverage.
        self._tracing = sys.gettrace()

    def run(self, program: Callable[[], object]) -> None:
        """Run `program` in this thread."""
        gc.disable()  # a finaliser is not what is to be interrupted
        watching = self._by_tracing if sys.version_info < (3, 12) else self._by_monitoring
        try:
            with watching():
                program()
        finally:
            gc.enable()

    def _pass(self, frame: FrameType) -> None:
        if self.where is None:
            self._left -= 1
            if self._left == 0:
                file = os.path.basename(frame.f_code.co_filename)
                self.where = f"{frame.f_code.co_name} at {file}:{frame.f_lineno}"
                sys.settrace(self._tracing)
                self._action()

    @contextmanager
    def _by_tracing(self) -> Iterator[None]:
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(self._tracing)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self._files or self.where is not None:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._count

    def _count(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self._pass(frame)
        return self._count

    @contextmanager
    def _by_monitoring(self) -> Iterator[None]:
        """From Python 3.12 on.  Python 3.13 traces no more opcodes once that was ended."""
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        event, me, tool = monitoring.events.INSTRUCTION, get_ident(), 4

        def before(code: CodeType, offset: int) -> Any:
            if code.co_filename not in self._files:
                return monitoring.DISABLE
            if get_ident() == me and can_be_hit(code, offset):
                self._pass(sys._getframe(1))
            return None

        monitoring.use_tool_id(tool, "moments")
        try:
            monitoring.register_callback(tool, event, before)
            monitoring.restart_events()
            monitoring.set_events(tool, event)
            yield
        finally:
            monitoring.set_events(tool, 0)
            monitoring.register_callback(tool, event, None)
            monitoring.free_tool_id(tool)


def stop() -> None:
    raise Stop


def interruptions(
    program: Callable[[], object], *modules: ModuleType, every: int = 1
) -> Iterator[str]:
    """Run `program` again and again, with Stop raised a moment later each time.

    Yields where, after each; the end is a run that nothing has interrupted.
    """
    return breaks(program, stop, *modules, every=every)


def breaks(
    program: Callable[[], object],
    action: Callable[[], object],
    *modules: ModuleType,
    every: int = 1,
) -> Iterator[str]:
    """Like `interruptions`, but `action` is what happens at that moment."""
    files = files_of(*modules)
    for moment in count(1, every):
        each = Break(moment, files, action)
        with suppress(Stop):
            each.run(program)
        if each.where is None:
            return
        yield each.where
