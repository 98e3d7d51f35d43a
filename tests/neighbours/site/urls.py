"""The site's pages."""

from __future__ import annotations

import os
from typing import Any

from django.urls import include, path

from . import async_pages, pages

urlpatterns: list[Any] = [
    path("ready/", pages.ready),
    path("status/", pages.status),
    path("order/", pages.order),
    path("stream/", pages.stream),
    path("executor/lasting/", pages.lasting_executor),
    path("executor/passing/", pages.passing_executor),
    path("async/view/", async_pages.view),
    path("async/stream/", async_pages.stream),
    path("async/rows/", async_pages.rows),
    path("async/offload/", async_pages.offload),
    path("gate/", async_pages.gate),
    path("gate/open/", async_pages.open_gate),
]
if os.environ.get("SITE_METRICS"):
    urlpatterns.append(path("", include("neighbours.site.metrics")))
