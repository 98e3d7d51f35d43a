"""Runs Django's own test suite on an engine and on its stock, and compares.

    python -m django_suite.run [--engine ENGINE] [--mode MODE] [--full | LABEL ...]

Stock and ours run at the same time, each with a PostgreSQL of its own, under settings
that differ by the engine alone.  A test that passes on stock and does not on ours is a
difference.  The exit status is 1 if there is one that `expected_differences.py` does
not list, or if a listed test passes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import django

import django_pg_real_pool
from django_suite import expected_differences, postgres
from django_suite.source import fetch_tests

HERE = Path(__file__).resolve().parent

LABELS = [
    "backends",
    "transactions",
    "transaction_hooks",
    "select_for_update",
    "basic",
    "async",
    "servers",
    "test_utils",
    "test_runner",
    "postgres_tests",
    "bulk_create",
    "queries",
    "multiple_database",
    "migrations",
    "schema",
]

MODES = {
    "django": "as Django runs it",
    "truncation": "without test transactions",
}

POOL_TIMEOUT = 10
NATIVE_POOL = {"OPTIONS": {"pool": {"min_size": 1, "max_size": 4, "timeout": POOL_TIMEOUT}}}
# SQLAlchemy's pool has no lower bound.
QUEUE_POOL = {"POOL_OPTIONS": {"POOL_SIZE": 4, "MAX_OVERFLOW": 0, "TIMEOUT": POOL_TIMEOUT}}

TRACEBACK_LINES = 15

#: The outcomes that a test must not have.
FAILURES = ("failed", "error", "hung", "unexpected success")


@dataclass(frozen=True)
class Engine:
    stock: str
    ours: str
    settings: dict[str, Any]


ENGINES = {
    "native": Engine("django.db.backends.postgresql", "django_pg_real_pool", NATIVE_POOL),
    "dj": Engine(
        "dj_db_conn_pool.backends.postgresql",
        "django_pg_real_pool.dj_db_conn_pool",
        QUEUE_POOL,
    ),
}


@dataclass
class Results:
    """How the tests ended on one engine."""

    #: The outcome of each, and its traceback if it is not "passed".
    outcomes: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    seconds: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Results:
        results = cls()
        if not path.exists():
            return results
        for entry in map(json.loads, path.read_text().splitlines()):
            if entry["event"] == "suite ended":
                results.complete = True
            elif entry["event"] == "ended":
                test = entry["test"]
                # The same test twice: what did not pass is what counts.
                if results.outcomes.get(test, "passed") == "passed":
                    results.outcomes[test] = entry["outcome"]
                    results.details[test] = entry["detail"]
        return results

    def failures(self) -> int:
        return sum(outcome in FAILURES for outcome in self.outcomes.values())

    def totals(self) -> str:
        counted = Counter(self.outcomes.values())
        words = ", ".join(f"{number} {word}" for word, number in counted.most_common())
        return f"{len(self.outcomes)} tests in {self.seconds:.0f} s: {words or 'none'}"

    def explain(self, test: str) -> str:
        """Return why `test` did not pass, or did not run."""
        outcome = self.outcomes.get(test)
        if outcome == "hung":
            # The main thread is the last, and begins with where it is.
            _, _, main_thread = self.details[test].rpartition("\nThread ")
            lines = main_thread.splitlines()[1 : TRACEBACK_LINES + 1]
            return "\n".join([outcome, *(lines or ["The process ended by itself."])])
        if outcome is not None:
            return f"{outcome}\n{_end_of(self.details[test], TRACEBACK_LINES)}"
        # unittest names what ran instead: "setUpClass (package.tests.SomeTests)".
        for other, detail in self.details.items():
            if other.endswith(f"({test.rpartition('.')[0]})"):
                return f"not run: {other}\n{_end_of(detail, TRACEBACK_LINES)}"
        return "not run"


@dataclass(frozen=True)
class Side:
    """One of the two engines under test: stock or ours."""

    name: str
    settings: dict[str, Any]
    directory: Path
    host: str

    def databases(self) -> dict[str, Any]:
        return {
            alias: {
                **self.settings,
                "NAME": f"suite_{alias}",
                "USER": postgres.USER,
                "HOST": self.host,
            }
            for alias in ("default", "other")
        }

    @property
    def results(self) -> Path:
        return self.directory / "results.jsonl"

    @property
    def log(self) -> Path:
        return self.directory / "output.txt"

    def prepare(self, tests: Path) -> None:
        self.directory.mkdir()
        (self.directory / "suite_settings.py").write_text(
            # What Django's own tests want beside DATABASES differs between versions.
            f"exec({(tests / 'test_sqlite.py').read_text()!r})\n"
            f"DATABASES = {self.databases()!r}\n"
        )
        databases = (database["NAME"] for database in self.databases().values())
        postgres.create_databases(self.host, *databases)

    def start(self, tests: Path, mode: str, limit: float, labels: list[str]) -> Any:
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [
                    *(sys.executable, str(HERE / "child.py")),
                    *(str(self.results), str(limit), mode),
                    *("--settings=suite_settings", "--parallel=1", "--noinput"),
                    *labels,
                ],
                cwd=tests,
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "suite_settings",
                    "PYTHONPATH": os.pathsep.join(
                        [str(self.directory), *_inherited_path()]
                    ),
                    "TMPDIR": str(temporary),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def run_sides(
    sides: list[Side], tests: Path, mode: str, limit: float, labels: list[str]
) -> list[Results]:
    """Run the tests on each side at the same time; go on after a test that hangs."""
    began = time.monotonic()
    running: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    ran: dict[str, int] = {side.name: 0 for side in sides}
    try:
        for side in sides:
            side.prepare(tests)
            running[side.name] = side.start(tests, mode, limit, labels)
        while running:
            time.sleep(0.2)
            for side in sides:
                process = running.get(side.name)
                if process is None or process.poll() is None:
                    continue
                seconds[side.name] = time.monotonic() - began
                _end_group(process)
                results = Results.read(side.results)
                if results.complete:
                    del running[side.name]
                elif len(results.outcomes) > ran[side.name]:
                    # A test that hung, or brought the process down.
                    ran[side.name] = len(results.outcomes)
                    postgres.end_sessions(side.host)
                    running[side.name] = side.start(tests, mode, limit, labels)
                else:
                    raise SystemExit(
                        f"The tests did not run to the end on {side.name}:\n"
                        + _end_of(side.log.read_text(errors="replace"), 60)
                    )
    finally:
        for process in running.values():
            _end_group(process)
    found = [Results.read(side.results) for side in sides]
    for side, results in zip(sides, found, strict=True):
        results.seconds = seconds[side.name]
    return found


def _end_group(process: Any) -> None:
    """Kill the process with those that its tests have started and left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Comparison:
    engine: str
    mode: str
    stock: Results
    ours: Results

    @property
    def differing(self) -> list[str]:
        """The tests that pass on stock and do not on ours, or that fail on ours alone.

        Also what no test is, `setUpClass (...)` for instance.
        """
        stock, ours = self.stock.outcomes, self.ours.outcomes
        return [
            test
            for test in [*stock, *(set(ours) - set(stock))]
            if (stock.get(test) == "passed" and ours.get(test) != "passed")
            or (ours.get(test) in FAILURES and stock.get(test) not in FAILURES)
        ]

    @property
    def expected(self) -> dict[str, str]:
        """Why each test may differ that is listed for this engine and mode."""
        return {
            entry.test: entry.because
            for entry in expected_differences.DIFFERENCES
            if entry.engine in (None, self.engine) and entry.mode in (None, self.mode)
        }

    @property
    def listed(self) -> list[str]:
        return [test for test in self.differing if test in self.expected]

    @property
    def unlisted(self) -> list[str]:
        return [test for test in self.differing if test not in self.expected]

    @property
    def listed_but_passing(self) -> list[str]:
        outcomes = self.ours.outcomes
        return [test for test in self.expected if outcomes.get(test) == "passed"]

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to mend, neither here nor in the list."""
        return not self.unlisted and not self.listed_but_passing

    def report(self) -> None:
        for test in self.listed:
            print(f"\nlisted: {test}\n{_indented(textwrap.fill(self.expected[test], 84))}")
        for test in self.unlisted:
            print(f"\nDIFFERENCE: {test}")
            print(_indented(self.ours.explain(test)))
        for test in self.listed_but_passing:
            print(f"\nLISTED, BUT IT PASSES: {test}")
        print(f"\nstock: {self.stock.totals()}\nours:  {self.ours.totals()}")
        print(f"differences: {len(self.unlisted)}, and {len(self.listed)} that are listed")

    def row(self) -> list[str]:
        return [
            *(django.get_version(), self.engine, MODES[self.mode]),
            *map(str, (len(self.ours.outcomes), self.stock.failures())),
            *map(str, (self.ours.failures(), len(self.unlisted), len(self.listed))),
        ]


COLUMNS = [
    *("Django", "engine", "mode", "tests"),
    *("stock fails", "ours fails", "differences", "listed"),
]


def table(comparisons: list[Comparison]) -> str:
    """Return the totals as a table for the documentation, with how it was made."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(each.row() for each in comparisons)]
    command = shlex.join(["python", "-m", "django_suite.run", *sys.argv[1:]])
    return "\n".join(
        [f"{date.today()}, `{command}`:", ""]
        + [f"| {' | '.join(line)} |" for line in lines]
    )


def _end_of(text: str, lines: int) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _indented(text: str) -> str:
    return textwrap.indent(text, "    ")


def _inherited_path() -> list[str]:
    """Return PYTHONPATH without our tests: Django's must not find modules there."""
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [
        path
        for path in paths
        if HERE.parent not in [Path(path).resolve(), *Path(path).resolve().parents]
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="django_suite",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "labels",
        nargs="*",
        metavar="LABEL",
        help="as for runtests.py; default: a selection",
    )
    parser.add_argument("--full", action="store_true", help="run the whole suite")
    parser.add_argument(
        "--engine", action="append", choices=ENGINES, help="may be repeated; default: all"
    )
    parser.add_argument(
        "--mode", action="append", choices=MODES, help="may be repeated; default: both"
    )
    parser.add_argument(
        "--limit", type=float, default=120, help="seconds that one test may take"
    )
    parser.add_argument(
        "--sources",
        type=Path,
        default=Path(tempfile.gettempdir()) / "django-suite-sources",
        help="where Django's sources are kept; fetched from PyPI if they are not there",
    )
    parser.add_argument(
        "--results", type=Path, help="keep the results and output here; default: nowhere"
    )
    parser.add_argument(
        "--postgres-bin", type=Path, help="the directory of initdb and postgres"
    )
    arguments = parser.parse_args()
    if arguments.full and arguments.labels:
        parser.error("--full runs all tests, so there can be no labels.")
    return arguments


def combinations(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for engine in arguments.engine or ENGINES:
        for mode in arguments.mode or MODES:
            yield engine, mode


def main() -> int:
    arguments = parse_arguments()
    # So that the servers are stopped and the files removed.
    signal.signal(signal.SIGTERM, lambda *ignored: sys.exit("terminated"))
    binaries = arguments.postgres_bin or postgres.find_binaries()
    tests = fetch_tests(arguments.sources)
    labels = [] if arguments.full else arguments.labels or LABELS
    python = ".".join(map(str, sys.version_info[:3]))
    print(
        f"Django {django.get_version()}, Python {python}, {postgres.version_of(binaries)}; "
        f"labels: {' '.join(labels) or 'all'}\n"
        f"ours is {Path(django_pg_real_pool.__file__).parent}"
    )
    comparisons = []
    for engine, mode in combinations(arguments):
        print(f"\n##### {engine}, {MODES[mode]} #####", flush=True)
        with ExitStack() as stack:
            if arguments.results:
                name = f"{django.get_version()}-{engine}-{mode}"
                directory = arguments.results.resolve() / name
                directory.mkdir(parents=True)
            else:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sides = [
                Side(
                    name,
                    {"ENGINE": path, **ENGINES[engine].settings},
                    directory / name,
                    stack.enter_context(postgres.private_server(binaries)),
                )
                for name, path in (
                    ("stock", ENGINES[engine].stock),
                    ("ours", ENGINES[engine].ours),
                )
            ]
            stock, ours = run_sides(sides, tests, mode, arguments.limit, labels)
        comparisons.append(Comparison(engine, mode, stock, ours))
        comparisons[-1].report()
    print(f"\n{table(comparisons)}")
    return 0 if all(each.is_clean for each in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
