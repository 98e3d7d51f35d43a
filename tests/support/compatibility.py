"""Plugin: writes into the docs on what the tests have run, when, and with which result.

`-p compatibility` for a whole run.  `REAL_POOL_WORKERS` says what served the requests, if
that was not pytest itself.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections import Counter
from datetime import date
from typing import Any

import pytest
from neighbours.table import version_of, write_row
from places import CHECKOUT

PAGE = CHECKOUT / "docs" / "reference" / "compatibility.md"
HEAD = "| Python | build | Django | psycopg | workers | tests | on |"
#: How many of the columns tell one run from another.
KEYS = 5

_outcomes: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.outcome] += 1


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _outcomes and not config.option.collectonly:
        row = row_of(_outcomes)
        write_row(PAGE, row, HEAD, KEYS)
        terminalreporter.write_line(f"{PAGE.name}: {row}")


def row_of(outcomes: Counter[str]) -> str:
    import psycopg

    result = [
        f"{outcomes[each]} {each}"
        for each in ("passed", "failed", "skipped")
        if outcomes[each]
    ]
    cells = [
        platform.python_version(),
        "free-threaded" if sysconfig.get_config_var("Py_GIL_DISABLED") else "usual",
        version_of("django"),
        f"{version_of('psycopg')}, {psycopg.pq.__impl__}",
        os.environ.get("REAL_POOL_WORKERS", "threads, forks, asyncio"),
        ", ".join(result),
        str(date.today()),
    ]
    return f"| {' | '.join(cells)} |"
