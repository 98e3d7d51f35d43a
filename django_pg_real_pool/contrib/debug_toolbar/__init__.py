"""A panel for django-debug-toolbar: when in this request was a connection held, what for?

Add `"django_pg_real_pool.contrib.debug_toolbar.LeasesPanel"` to `DEBUG_TOOLBAR_PANELS`.
Nothing is watched but while a request is served for which the panel is enabled.
"""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured

from .drawing import draw, subtitle
from .recording import Recording

try:
    from debug_toolbar.panels import Panel
except ImportError as error:
    raise ImproperlyConfigured(
        "django_pg_real_pool.contrib.debug_toolbar needs django-debug-toolbar "
        f"({error}). Install it: pip install django-debug-toolbar"
    ) from error

__all__ = ["LeasesPanel"]


class LeasesPanel(Panel):  # type: ignore[misc]
    """The request as a time line, with each connection that was held, and by what."""

    is_async = True
    title = "When this request held a connection"
    nav_title = "Connections"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.recording = Recording()

    @property
    def nav_subtitle(self) -> str:
        return subtitle(self.get_stats())

    @property
    def content(self) -> str:
        return draw(self.get_stats())

    def enable_instrumentation(self) -> None:
        self.recording.start()
        self.recording.attach_all()

    async def aenable_instrumentation(self) -> None:
        task = asyncio.current_task()
        self.recording.coroutine = task and task.get_coro()
        self.recording.start()
        await sync_to_async(self.recording.attach_all)()

    def disable_instrumentation(self) -> None:
        self.recording.stop()

    def generate_stats(self, request: Any, response: Any) -> None:
        self.record_stats(self.recording.as_stats())
