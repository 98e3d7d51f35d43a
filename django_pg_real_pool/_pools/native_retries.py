"""How soon Django's own pool notices that a server which was away has returned."""

from __future__ import annotations

from typing import Any
from weakref import ref

#: Seconds between two looks.
_RETRY_WITHIN = 1.0


class Retries:
    """Stands for a pool's `schedule_task()`, to notice early that the server is back.

    For each connection that it lacks, psycopg_pool waits twice as long after each
    failure, so the longer a server was away, the longer its return is not noticed.
    Here one of them tries every second, and when it succeeds, the others do not wait.
    """

    def __init__(self, pool: Any) -> None:
        self._schedule = type(pool).schedule_task
        self._pool = ref(pool)
        self._waiting: list[_Retry] = []

    def __call__(self, task: Any, delay: float) -> None:
        if getattr(task, "attempt", None) is not None:
            is_probe = not any(each.is_probe for each in list(self._waiting))
            task = _Retry(task, self._waiting, is_probe)
            self._waiting.append(task)
            if is_probe:
                delay = min(delay, _RETRY_WITHIN)
        self._schedule(self._pool(), task, delay)

    def hurry(self) -> None:
        for retry in list(self._waiting):
            retry.tick()


class _Retry:
    """An attempt to connect that is scheduled, and may be made earlier: once."""

    def __init__(self, task: Any, waiting: list[_Retry], is_probe: bool) -> None:
        self._task = task
        self._waiting = waiting
        self.is_probe = is_probe

    def tick(self) -> None:
        try:
            self._waiting.remove(self)
        except ValueError:
            return  # it was made already
        self._task.tick()
