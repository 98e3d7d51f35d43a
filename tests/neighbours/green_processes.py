"""Programs of greenlets as real processes, and a storm of kills beside others.

nox -s greenlets -- --seconds 300
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import psycopg

from neighbours.processes import running

PROGRAMS = Path(__file__).with_name("green") / "programs.py"

#: Seconds after which a program hangs.
PATIENCE = 60

POOL = 3


def programs() -> list[str]:
    """Return the names of all programs, without importing them: that would patch."""
    return [
        each.name
        for each in ast.parse(PROGRAMS.read_text(encoding="utf-8")).body
        if isinstance(each, ast.FunctionDef) and each.decorator_list
        if ast.unparse(each.decorator_list[0]) == "program"
    ]


SETTINGS = {"ALIAS": "native", "POOL_SIZE": POOL, "POOL_TIMEOUT": 5}


def run_program(name: str, **settings: object) -> None:
    given = {**SETTINGS, **settings}
    with running(["neighbours.green.programs", name], given) as program:
        assert program.process.wait(PATIENCE) == 0
        assert "Traceback" not in program.log
        assert "done" in program.log.splitlines()


def fails(*arguments: str, **settings: object) -> str:
    """Run a program that is to fail at once; return what it prints."""
    with running([*arguments], {**SETTINGS, **settings}) as program:
        assert program.process.wait(PATIENCE) == 1
        return program.log


# ##### The storm #####

#: What it is run on, with the settings for it.
ENGINES: dict[str, dict[str, object]] = {
    "stock": {"ALIAS": "stock_native"},
    "django-db-geventpool": {"ALIAS": "stock_native", "GEVENTPOOL": 1},
    "ours": {"ALIAS": "native"},
}


def storm(engine: str, seconds: float, greenlets: int, size: int) -> dict[str, Any]:
    """Kill greenlets at random while they make requests; see `green.storm.Result`."""
    arguments = ["neighbours.green.storm", str(seconds), str(greenlets)]
    given = {"GREEN": "gevent", "POOL_SIZE": size, "POOL_TIMEOUT": 30, **ENGINES[engine]}
    with running(arguments, given) as program:
        program.process.wait(seconds + 3 * PATIENCE)
        lines = program.log.splitlines()
        result: dict[str, Any] = json.loads(
            next(each for each in lines if each.startswith("{"))
        )
    return result


def complaints(result: dict[str, Any], size: int) -> list[str]:
    """Return what must not be, in words."""
    wanted = {"doubly_used": 0, "lost": 0, "hung": 0, "not_idle": 0, "errors": {}}
    wrong = [f"{name}: {result[name]}" for name in wanted if result[name] != wanted[name]]
    if result["usable"] != size:
        wrong.append(f"usable: {result['usable']} of {size}")
    if result["connections"] > size:
        wrong.append(f"connections: {result['connections']}, more than {size}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="nox -s greenlets --", description=storm.__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="for each engine")
    parser.add_argument("--greenlets", type=int, default=1000)
    parser.add_argument("--size", type=int, default=8, help="of the pool")
    parser.add_argument("--engine", choices=ENGINES, action="append")
    options = parser.parse_args()

    from server import DATABASE, create_database, provide_server

    provide_server()
    os.environ["PGDATABASE"] = DATABASE
    create_database()
    with psycopg.connect(autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS item")
        connection.execute("CREATE TABLE item (id serial PRIMARY KEY, name text UNIQUE)")
    wrong: list[str] = []
    for engine in options.engine or ENGINES:
        result = storm(engine, options.seconds, options.greenlets, options.size)
        wrong = complaints(result, options.size)
        rate = result["requests"] / result["seconds"]
        print(f"{engine}: {rate:.0f} requests/s; {result}", flush=True)
    print("\n".join(wrong or ["Ours did what it should."]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
