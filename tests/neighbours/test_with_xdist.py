"""pytest-xdist and pytest-django: a project's tests, in processes that each have their own.

The project is `shop/`.  Its tests look at themselves; here is looked at from outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SHOP = Path(__file__).with_name("shop")
WORKERS = {"gw0", "gw1"}


@pytest.fixture(params=["native", "dj"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Note(NamedTuple):
    """What a test of the project wrote down."""

    test: str
    worker: str
    database: str
    pid: str


class Ran:
    """One run of the project's tests."""

    def __init__(self, engine: str, notes: Path, *arguments: str) -> None:
        environment = {
            **os.environ,
            "SHOP_ENGINE": engine,
            "SHOP_DATABASE": os.environ["PGDATABASE"],
            "SHOP_NOTES": str(notes),
        }
        notes.write_text("")
        ran = subprocess.run(
            [
                Path(sys.executable).with_name("pytest"),
                f"--config-file={SHOP / 'pytest.ini'}",
                "--ds=neighbours.shop.settings",
                "--numprocesses=2",
                "-p",
                "no:cacheprovider",
                *arguments,
                SHOP,
            ],
            env=environment,
            cwd=notes.parent,  # so that the checkout is not imported
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        self.code, self.output = ran.returncode, ran.stdout + ran.stderr
        self.notes = [Note(*line.split()) for line in notes.read_text().splitlines()]


def databases(observer: Any) -> dict[str, int]:
    """Return the test databases there are, and what tells them from later ones."""
    found = "SELECT datname, oid FROM pg_database WHERE datname LIKE 'test\\_%%'"
    return dict(observer.execute(found, []).fetchall())


def test_each_worker_has_databases_of_its_own(
    engine: str, observer: Any, tmp_path: Path
) -> None:
    """D1: made, used and dropped; not one of the tests finds anything held."""
    ran = Ran(engine, tmp_path / "notes")
    assert ran.code == 0, ran.output
    assert {note.worker for note in ran.notes} == WORKERS
    assert {(note.worker, note.database) for note in ran.notes} <= {
        (worker, f"test_{os.environ['PGDATABASE']}{of}_{worker}")
        for worker in WORKERS
        for of in ("", "_archive")
    }
    assert databases(observer) == {}
    # Six threads of a test take turns with the two connections that there are.
    busy = {note.test: set[str]() for note in ran.notes if "more_threads" in note.test}
    for note in ran.notes:
        if note.test in busy:
            busy[note.test].add(note.pid)
    assert len(busy) == 4
    assert all(len(pids) <= 2 for pids in busy.values())


def test_test_databases_are_kept_and_used_again(
    engine: str, observer: Any, tmp_path: Path
) -> None:
    """D1: with `--reuse-db`, where each worker looks for what it has made before."""
    few = ("--reuse-db", "-k", "each_test_has or two_databases")
    kept: list[dict[str, int]] = []
    try:
        for _ in range(2):
            ran = Ran(engine, tmp_path / "notes", *few)
            assert ran.code == 0, ran.output
            assert {note.worker for note in ran.notes} == WORKERS
            kept.append(databases(observer))
        assert len(kept[0]) == 4
        assert kept[0] == kept[1]
    finally:
        for name in databases(observer):
            observer.execute(f'DROP DATABASE "{name}"')
