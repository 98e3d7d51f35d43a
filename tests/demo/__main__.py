"""Put the same load on the same site with two engines; print a table, draw a picture."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from server import create_database, provide_server

from demo.picture import draw
from demo.run import Run, table

DATABASE = "django_pg_real_pool_demo"
STOCK = "django.db.backends.postgresql"
OURS = "django_pg_real_pool"


def main() -> None:
    parser = argparse.ArgumentParser(prog="nox -s demo --", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="how long each run lasts")
    parser.add_argument(
        "--output", type=Path, default=Path(), help="where the picture goes"
    )
    options = parser.parse_args()

    provide_server()
    stock = measure("stock", STOCK, options.seconds)
    ours = measure("ours", OURS, options.seconds)

    print(f"\n{table(stock, ours)}\n")
    print(f"stock is {STOCK}, ours is {OURS}; all else is the same.")
    print(f"{surroundings()}.\n")
    for picture in draw(stock, ours, options.output):
        print(f"picture: {picture.resolve()}")


def measure(label: str, engine: str, seconds: float) -> Run:
    """Run the site in a new process, on new tables; return what was measured."""
    create_database(DATABASE)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "run.json")
        subprocess.run(
            [sys.executable, "-m", "demo.traffic", label, str(seconds), file],
            env={
                **os.environ,
                "PGDATABASE": DATABASE,
                "DJANGO_SETTINGS_MODULE": "demo.settings",
                "DEMO_ENGINE": engine,
            },
            check=True,
        )
        return Run.read(file)


def surroundings() -> str:
    return (
        f"Python {platform.python_version()}, Django {version('django')}, "
        f"psycopg_pool {version('psycopg-pool')}, {os.cpu_count()} processors"
    )


if __name__ == "__main__":
    main()
