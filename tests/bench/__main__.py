"""Measure what early release costs and gives; print tables, write JSON, draw pictures."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from bouncer import bouncer
from demo.__main__ import surroundings
from server import create_database, provide_server

from bench import report
from bench.load import Load
from bench.picture import draw

DATABASE = "django_pg_real_pool_bench"
THREADS = 64
SIZES = [1, 2, 4, 8, 16, 32, 64]
OTHER_WORK = [5.0, 50.0, 200.0]
ROWS = 100
#: Threads, connections, and rows of the page that a request renders.
CONTENTION = [
    (32, 4, 0),
    (THREADS, 4, 0),
    (32, 2, 0),
    (32, 4, ROWS),
    (32, 2, ROWS),
    (32, 32, ROWS),
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="take less than two minutes")
    parser.add_argument(
        "--output", type=Path, default=Path(), help="where JSON and pictures go"
    )
    options = parser.parse_args()
    quick = options.quick

    provide_server()
    os.environ["PGDATABASE"] = DATABASE
    options.output.mkdir(parents=True, exist_ok=True)
    with (options.output / "bench.txt").open("w") as text:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=text)

        say(f"{date.today()}: {surroundings()}.\n")
        found: dict[str, Any] = {"operations": operations(rounds=20 if quick else 150)}
        say(report.operations(found["operations"]))
        found["contention"] = contention(
            seconds=1.5 if quick else 5, times=2 if quick else 5
        )
        say(report.contention(found["contention"]))
        found["throughput"] = throughput(
            sizes=[4, 64] if quick else SIZES,
            works=[50.0] if quick else OTHER_WORK,
            seconds=2 if quick else 4,
            times=1 if quick else 3,
        )
        found["throughput"] = report.medians(found["throughput"])
        say(report.throughput(found["throughput"]))

    file = options.output / "bench.json"
    file.write_text(json.dumps(found))
    for written in [text.name, file, *draw(found, options.output)]:
        print(f"written: {Path(written).resolve()}")


def operations(rounds: int) -> Any:
    create_database(DATABASE)
    return run("bench.operations", str(rounds))


def contention(seconds: float, times: int) -> list[Any]:
    """Let threads query and wait for nothing else, on stock and on ours in turn."""
    results = []
    for threads, size, rows in CONTENTION:
        load = Load(threads, size, 0.0, 3, seconds, rows)
        for _ in range(times):
            results += [load_run(engine, load) for engine in ("stock", "ours")]
    return results


def throughput(
    sizes: list[int], works: list[float], seconds: float, times: int
) -> list[Any]:
    """Give requests other work, and the pools more and more connections."""
    results = []
    for work in works:
        for size in sizes:
            load = Load(THREADS, size, work, 3, seconds)
            for _ in range(times):
                results += [load_run(engine, load) for engine in ("stock", "ours")]
            if size != 4:
                continue
            with bouncer(size) as settings:
                if settings is None:
                    print("pgbouncer is not installed, so it is not measured.")
                    continue
                behind = {**settings, "CONN_MAX_AGE": None}
                load = Load(THREADS, None, work, 3, seconds, settings=behind)
                result = load_run("stock", load)
                results.append({**result, "engine": f"PgBouncer, {size} connections"})
    return results


def load_run(engine: str, load: Load) -> Any:
    create_database(DATABASE)
    return run("bench.load", engine, json.dumps(asdict(load)))


def run(module: str, argument: str, given: str | None = None) -> Any:
    """Run a module in a process of its own; return what it wrote."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "result.json")
        subprocess.run(
            [sys.executable, "-m", module, argument, file],
            input=given,
            text=True,
            check=True,
        )
        return json.loads(file.read_text())


if __name__ == "__main__":
    main()
