"""Where in the user's code something began, if a coroutine has begun it."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from types import FrameType
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from helpers import DEADLINE

from django_pg_real_pool._process import origins


def line_of(function: Any, mark: str) -> str:
    """Return the place of a function's line that ends with a mark."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [n for n, line in enumerate(lines) if line.endswith(f"# {mark}\n")]
    return f"{__file__}:{first + number} in {function.__name__}"


async def ask(found: list[Any]) -> None:
    task = asyncio.current_task()
    assert task is not None

    def look() -> None:
        found.append(origins.describe_coroutine(task.get_coro()))

    await sync_to_async(look)()  # awaits


def test_a_coroutine_is_where_it_awaits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in what is awaited, which is of a package; nor can it be read while it runs."""
    found: list[Any] = []
    async_to_sync(ask)(found)
    assert found == [line_of(ask, "awaits") if origins._has_gil() else None]
    monkeypatch.setattr(origins, "_has_gil", lambda: False)
    async_to_sync(ask)(found)
    assert found[1:] == [None]


def test_who_serves_a_coroutine_has_not_called_it() -> None:
    """The thread's own stack, further out, is busy with something else."""
    found: list[str] = []

    async def serve() -> None:
        await sync_to_async(passed_over)()

    scope: dict[str, Any] = {"__name__": "django.db", "found": found, "origins": origins}
    exec("def passed_over(): found.append(origins.find_origin())", scope)  # noqa: S102
    passed_over = scope["passed_over"]
    async_to_sync(serve)()
    assert found == ["<string>:1 in passed_over"]
    passed_over()
    assert found[1].startswith(f"{__file__}:")


def test_a_thread_runs_on_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that has yielded is called by nobody: who times out is told so, still."""
    ready, told = threading.Event(), threading.Event()

    def wait() -> None:
        ready.set()
        told.wait(DEADLINE)

    scope: dict[str, Any] = {"__name__": "django.db", "wait": wait}
    exec("def passed_over(): yield wait()", scope)  # noqa: S102
    generator = scope["passed_over"]()
    thread = threading.Thread(target=next, args=[generator])
    thread.start()
    ready.wait(DEADLINE)
    frame = sys._current_frames()[thread.ident or 0]
    while frame.f_code.co_name != "passed_over":
        assert frame.f_back is not None
        frame = frame.f_back

    def return_meanwhile(frame: FrameType) -> bool:
        told.set()
        thread.join(DEADLINE)
        return False

    monkeypatch.setattr(origins, "_serves_coroutine", return_meanwhile)
    assert origins.describe_frame(frame).endswith(" in passed_over")
