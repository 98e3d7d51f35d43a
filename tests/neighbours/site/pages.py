"""Pages for threads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

from django.db import connection
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse

from django_pg_real_pool import pool_status

from . import work

#: More than the pool has connections.
THREADS = 6

#: As a project would have it, for the whole process: its threads outlive the requests.
lasting = ThreadPoolExecutor(THREADS)


def ready(request: HttpRequest) -> JsonResponse:
    return JsonResponse("yes", safe=False)


def status(request: HttpRequest) -> JsonResponse:
    """Forward what `pool_status()` says, of the process that answers."""
    status = pool_status()
    return JsonResponse(
        {
            "worker": os.getpid(),
            "in_use": status.census.in_use,
            "leases": [str(lease) for lease in status.leases],
            **work.counted,
        }
    )


def order(request: HttpRequest) -> JsonResponse:
    return JsonResponse(work.report(work.order()))


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Query for each line, and do other work before the next."""

    def lines() -> Iterator[str]:
        for _ in range(5):
            yield json.dumps(work.report([work.backend_pid()])) + "\n"
            time.sleep(work.OTHER_WORK)

    return StreamingHttpResponse(lines())


def lasting_executor(request: HttpRequest) -> JsonResponse:
    """Query in threads that no request owns: Django closes nothing at their end."""
    return JsonResponse(work.report(_order_in_each_thread(lasting)))


def passing_executor(request: HttpRequest) -> JsonResponse:
    """Let threads end with something that is held until `close()`."""
    with ThreadPoolExecutor(THREADS) as passing:
        _order_in_each_thread(passing)
        backends = [passing.submit(_change_session).result()]
    return JsonResponse(work.report(backends))


def _order_in_each_thread(executor: Executor) -> list[int]:
    orders = list(executor.map(lambda _: work.order(), range(THREADS)))
    return [backend for order in orders for backend in order]


def _change_session() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SET work_mem = '7MB'")
    return work.backend_pid()
