"""Runs Django's `runtests.py` in this process, and writes down how each test ended.

Started by `run.py`, as a program, with Django's `tests` as the current directory:

    child.py RESULTS LIMIT MODE [argument of runtests.py ...]

RESULTS gets a JSON object a line.  A test, or what is between two tests, that takes more
than LIMIT seconds ends the process; started again with the same file, it counts that test
as hung and goes on with the next.

Django's suite must not find modules of ours, so this file stands alone.
"""

from __future__ import annotations

import faulthandler
import json
import runpy
import sys
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO
from unittest.util import strclass

NAME = "django_suite_child"

#: Making the test databases may take so many times the limit of a test.
SET_UP_FACTOR = 5

#: From best to worst: a test that is run twice, or has subtests, ends as its worst part.
OUTCOMES = (
    "passed",
    "expected failure",
    "skipped",
    "unexpected success",
    "failed",
    "error",
    "hung",
)


class Journal:
    """The file of results: what was read of it at the start, and what is written since."""

    def __init__(self, path: Path, limit: float) -> None:
        self.limit = limit
        #: The tests that an earlier process has run.
        self.done: set[str] = set()
        #: The test that an earlier process did not survive.
        self.unfinished: str | None = None
        #: Where the threads of that process were.
        self.last_stacks = ""
        self.resumed = path.exists()
        stacks = path.with_suffix(".stacks")
        if self.resumed:
            self.last_stacks = stacks.read_text()
            for entry in map(json.loads, path.read_text().splitlines()):
                if entry["event"] == "started":
                    self.unfinished = entry["test"]
                elif entry["event"] == "ended":
                    self.unfinished = None
                    self.done.add(entry["test"])
        self.file = path.open("a")
        self.stacks: TextIO = stacks.open("w")
        self._start_clock(limit * SET_UP_FACTOR)

    def write(self, event: str, **entry: Any) -> None:
        self.file.write(json.dumps({"event": event, **entry}) + "\n")
        self.file.flush()
        self._start_clock(self.limit)

    def _start_clock(self, limit: float) -> None:
        # A thread written in C, so it works whatever the interpreter waits for.
        faulthandler.dump_traceback_later(limit, exit=True, file=self.stacks)


class RecordingResult(unittest.TextTestResult):
    journal: Journal

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._outcome = "passed"
        self._details: list[str] = []
        self._began = 0.0

    def startTest(self, test: unittest.TestCase) -> None:
        self._outcome, self._details = "passed", []
        self._began = time.monotonic()
        self.journal.write("started", test=test.id())
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.journal.write(
            "ended",
            test=test.id(),
            outcome=self._outcome,
            detail="\n".join(self._details),
            seconds=round(time.monotonic() - self._began, 3),
        )

    def _note(self, test: Any, outcome: str, detail: str) -> None:
        if not isinstance(test, unittest.TestCase):
            # setUpClass() and the like: no test has been started.
            self.journal.write("ended", test=test.id(), outcome=outcome, detail=detail)
            return
        self._outcome = max(self._outcome, outcome, key=OUTCOMES.index)
        self._details.append(detail)

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._note(test, "error", self._text(err, test))

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, "failed", self._text(err, test))

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, "failed", f"{subtest}\n{self._text(err, test)}")

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._note(test, "expected failure", self._text(err, test))

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        self._note(test, "unexpected success", "")

    def _text(self, err: Any, test: Any) -> str:
        return str(self._exc_info_to_string(err, test))  # type: ignore[attr-defined]


def flatten(suite: Any) -> Iterator[Any]:
    for test in suite:
        if isinstance(test, unittest.TestCase):
            yield test
        else:
            yield from flatten(test)


def make_runner(journal: Journal) -> type[Any]:
    """Return Django's runner with our result class, which leaves out what was run."""
    from django.test.runner import DiscoverRunner

    class Runner(DiscoverRunner):
        def get_resultclass(self) -> type[unittest.TextTestResult]:
            return RecordingResult

        def build_suite(self, *args: Any, **kwargs: Any) -> Any:
            tests = list(flatten(super().build_suite(*args, **kwargs)))
            if journal.resumed:
                tests = list(without_what_was_run(tests, journal))
            return self.test_suite(tests)

        def run_suite(self, suite: Any, **kwargs: Any) -> Any:
            journal.write("suite begins")
            result = super().run_suite(suite, **kwargs)
            journal.write("suite ended")
            return result

    RecordingResult.journal = journal
    return Runner


def ends_of(test: Any) -> Iterator[str]:
    """Yield each id under which it can be noted that `test` has been dealt with."""
    yield test.id()
    yield f"setUpClass ({strclass(type(test))})"  # as unittest names what failed


def without_what_was_run(tests: list[Any], journal: Journal) -> Iterator[Any]:
    left = [test for test in tests if journal.done.isdisjoint(ends_of(test))]
    if journal.unfinished is not None:
        hung = {journal.unfinished}
    elif left:  # between two tests, most likely in setUpClass() of the next
        hung = {test.id() for test in left if type(test) is type(left[0])}
    else:
        hung = set()
    for test in hung:
        journal.write("ended", test=test, outcome="hung", detail=journal.last_stacks)
    return (test for test in left if test.id() not in hung)


def do_without_test_transactions() -> None:
    """Make `TestCase` fall back to truncation, as on a database without transactions.

    Inside its two `atomic()` blocks nothing is ever released, so nothing is tested.
    """
    from django.test import TestCase

    if not hasattr(TestCase, "_databases_support_transactions"):
        raise SystemExit("This Django's TestCase asks something else for transactions.")
    TestCase._databases_support_transactions = classmethod(lambda cls: False)
    flush = TestCase._fixture_teardown  # type: ignore[attr-defined]
    shortcuts: dict[str, FlushShortcut] = {}

    def fixture_teardown(self: Any) -> None:
        aliases = self._databases_names(include_mirrors=False)
        for alias in aliases:
            shortcuts.setdefault(alias, FlushShortcut(alias))
        if not all(shortcuts[alias].empty_tables() for alias in aliases):
            flush(self)
            for alias in aliases:
                shortcuts[alias].note_flushed()

    TestCase._fixture_teardown = fixture_teardown  # type: ignore[attr-defined]


class FlushShortcut:
    """Brings a database to where `flush` would bring it, in a fiftieth of the time.

    `flush` truncates hundreds of empty tables after each test, and fills the same few
    with the same rows again.  This empties the tables that have rows, unless a test
    changed what is there after a flush: then it says so, and Django's flush is due.
    """

    def __init__(self, alias: str) -> None:
        from django.db import connections

        self.connection = connections[alias]
        self.tables: list[str] = []
        #: The tables that have rows after a flush, with the sum of their content.
        self.filled: dict[str, str] | None = None

    def note_flushed(self) -> None:
        self.tables = [
            self.connection.ops.quote_name(table)
            for table in self.connection.introspection.django_table_names(
                only_existing=True, include_views=False
            )
        ]
        filled = self._tables_with_rows()
        self.filled = dict(zip(filled, self._sums(filled), strict=True))

    def empty_tables(self) -> bool:
        """Return whether the database is now as after a flush."""
        from django.db import transaction

        if self.filled is None:
            return False
        with transaction.atomic(using=self.connection.alias):
            superfluous = set(self._tables_with_rows()) - set(self.filled)
            if superfluous:
                with self.connection.cursor() as cursor:
                    cursor.execute(f"TRUNCATE {', '.join(sorted(superfluous))} CASCADE")
            return self._sums(list(self.filled)) == list(self.filled.values())

    def _tables_with_rows(self) -> list[str]:
        parts = (
            f"SELECT {position} WHERE EXISTS (SELECT FROM {table})"
            for position, table in enumerate(self.tables)
        )
        return [
            self.tables[position] for (position,) in self._fetch(" UNION ALL ".join(parts))
        ]

    def _sums(self, tables: list[str]) -> list[str]:
        if not tables:
            return []
        columns = (
            f"(SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {table} t)"
            for table in tables
        )
        return list(self._fetch(f"SELECT {', '.join(columns)}")[0])

    def _fetch(self, sql: str) -> list[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())


def main(results: str, limit: str, mode: str, *arguments: str) -> None:
    from django.conf import settings

    journal = Journal(Path(results), float(limit))
    this = sys.modules[NAME] = sys.modules[__name__]
    this.Runner = make_runner(journal)  # type: ignore[attr-defined]
    settings.TEST_RUNNER = f"{NAME}.Runner"
    if mode == "truncation":
        do_without_test_transactions()
    sys.argv[:] = ["runtests.py", *arguments]
    sys.path[0] = str(Path.cwd())
    runpy.run_path("runtests.py", run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
