"""One fault on one engine, in a process of its own.

Runs as `python -m chaos.scenario FAULT ENGINE SECONDS FILE`, and writes a `Result`.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import statistics
import sys
import threading
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.site import create_table, database, model, set_up
from django.db import close_old_connections, connection, connections
from second_server import HOST, PASSWORD, USER, Server
from tcp_proxy import Proxy

from chaos.faults import FAULTS, SIZE, THREADS, Scene
from chaos.load import ROWS, Load, Request
from django_pg_real_pool import ConnectionReleaseMixin, pool_status

#: What is raised where a connection is cut, or can't be had: never a pool's own timeout,
#: which comes later.
# The last one is psycopg's: what a server-side cursor's close() raises, Django does not
# wrap, on stock as here.
CONNECTION_ERRORS = {"OperationalError", "InterfaceError", "AdminShutdown"}
#: Seconds after a fault within which a statement that it cut has failed.
PROMPTLY = 2.0


@dataclass(frozen=True)
class Result:
    fault: str
    engine: str
    faults: int
    requests: int
    #: Requests that failed while a fault was at work, and at other times: how, how often.
    allowed: dict[str, int]
    not_allowed: dict[str, int]
    children_failed: int
    #: Seconds, of the slowest and of the one in the middle.
    recovered_max: float | None
    recovered_median: float | None
    #: Leases that nobody has any more; None: stock has none.
    leaked: int | None
    #: Of the pool's size, after two seconds of rest.
    lost: int
    doubled: int
    #: What transactions moved between rows and did not arrive.
    missing: int


def main(fault: str, engine: str, seconds: float, file: Path) -> None:
    faulthandler.dump_traceback_later(seconds + 240, exit=True)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    threading.excepthook = lambda arguments: None  # what is thrown in may end a thread
    server = Server()
    proxy = Proxy(HOST, server.port)
    os.environ.update(
        PGHOST=HOST,
        PGPORT=str(proxy.port if fault == "network" else server.port),
        PGUSER=USER,
        PGPASSWORD=PASSWORD,
        PGDATABASE="postgres",
        PGAPPNAME="chaos",
    )
    try:
        settings = database(engine, SIZE)
        limits: Any = settings.get("POOL_OPTIONS") or settings["OPTIONS"]["pool"]
        limits["TIMEOUT" if engine.startswith("dj_") else "timeout"] = 5
        set_up({"default": settings})
        thing = model()
        create_table(thing, rows=ROWS)
        close_old_connections()
        result = harm(fault, engine, Scene(server, proxy, Load(thing), seconds))
        file.write_text(json.dumps(asdict(result)))
    finally:
        connections.close_all()
        proxy.close()
        server.remove()
    os._exit(0)  # stock leaves threads and pools behind that would not end


def harm(fault: str, engine: str, scene: Scene) -> Result:
    load = scene.load
    load.start(THREADS.get(fault, 32))
    time.sleep(0.5)
    try:
        FAULTS[fault](scene)
    finally:
        load.end()
    return judge(fault, engine, scene)


def judge(fault: str, engine: str, scene: Scene) -> Result:
    load = scene.load
    gc.collect()
    leaked, lost = rest()
    ((total,),) = scene.observe("SELECT sum(number) FROM bench_thing")
    allowed: Counter[str] = Counter()
    not_allowed: Counter[str] = Counter()
    for request in load.requests:
        if request.error is not None:
            (allowed if may_fail(request, fault, scene) else not_allowed)[
                f"{request.kind}: {request.error}"
            ] += 1
    return Result(
        fault=fault,
        engine=engine,
        faults=len(scene.faults),
        requests=len(load.requests),
        allowed=dict(allowed),
        not_allowed=dict(not_allowed),
        children_failed=scene.children_failed,
        recovered_max=max(scene.recoveries, default=None),
        recovered_median=statistics.median(scene.recoveries) if scene.recoveries else None,
        leaked=leaked,
        lost=lost,
        doubled=load.doubled(),
        missing=abs(sum(range(ROWS)) - int(total)),
    )


def may_fail(request: Request, fault: str, scene: Scene) -> bool:
    """Return whether a request failed as one does whose connection is cut under it."""
    kind = (request.error or "").partition(":")[0]
    if fault == "exceptions":
        return kind in ("Interrupted", "TimeLimit")
    return kind in CONNECTION_ERRORS and any(
        began <= request.ended <= ended + PROMPTLY and request.began <= ended
        for began, ended in scene.faults
    )


def rest() -> tuple[int | None, int]:
    """Return how many leases and connections are gone two seconds after the load."""
    wrapper: Any = connection
    deadline = time.monotonic() + 2
    while True:
        leases = None
        if isinstance(wrapper, ConnectionReleaseMixin) or hasattr(wrapper, "_lease"):
            leases = len(pool_status().leases)
        in_use, idle = census(wrapper)
        if (not leases and not in_use and idle == SIZE) or time.monotonic() > deadline:
            return leases, SIZE - idle
        time.sleep(0.02)


def census(wrapper: Any) -> tuple[int, int]:
    if wrapper.settings_dict.get("POOL_OPTIONS"):
        from dj_db_conn_pool.core import pool_container

        pool = pool_container.get("default")
        # It opens no connection before it is asked for one: what is free counts.
        return pool.checkedout(), SIZE - pool.checkedout()
    stats = wrapper.pool.get_stats()
    return stats["pool_size"] - stats["pool_available"], stats["pool_available"]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
