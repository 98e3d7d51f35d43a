"""Plugin: writes what was tested, in which version, with which result, into the docs.

`nox -s "neighbours(name)"` names the neighbour in `REAL_POOL_NEIGHBOUR`, and what pip and
Debian have installed for it in `REAL_POOL_NEIGHBOUR_PACKAGES`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections import Counter
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "neighbours.md"
HEAD = "| neighbour | versions | Python, Django | passed | not run, and why | on |"

#: What each test came to: "passed", "failed", "skipped", or "meant to differ".
_outcomes: Counter[str] = Counter()
_reasons: dict[str, set[str]] = {"skipped": set(), "meant to differ": set()}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and hasattr(report, "wasxfail"):
        # See neighbours.contract.
        _outcomes["meant to differ"] += 1
        reason = report.wasxfail.removeprefix("[NOTRUN] ").removeprefix("reason: ")
        _reasons["meant to differ"].add(reason)
        return
    if report.when == "call" or report.outcome != "passed":
        _outcomes[report.outcome] += 1
    if report.skipped and isinstance(report.longrepr, tuple):
        _reasons["skipped"].add(report.longrepr[2].removeprefix("Skipped: "))


def pytest_sessionfinish(session: pytest.Session) -> None:
    name = os.environ.get("REAL_POOL_NEIGHBOUR")
    if name and _outcomes and not session.config.option.collectonly:
        write_row(PAGE, row_of(name))


def row_of(name: str) -> str:
    packages = os.environ.get("REAL_POOL_NEIGHBOUR_PACKAGES", "").split()
    versions = ", ".join(f"{package} {version_of(package)}" for package in packages)
    surroundings = f"{platform.python_version()}, {version_of('django')}"
    result = str(_outcomes["passed"])
    if _outcomes["failed"]:
        result += f", **{_outcomes['failed']} failed**"
    not_run = [
        f"{_outcomes[each]} {each}: {'; '.join(sorted(reasons))}".replace(" skipped:", ":")
        for each, reasons in _reasons.items()
        if reasons
    ]
    cells = [
        name,
        versions,
        surroundings,
        result,
        ". ".join(not_run),
        str(date.today()),
    ]
    return f"| {' | '.join(cells)} |"


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _debian_version_of(package)


def _debian_version_of(package: str) -> str:
    try:
        shown = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Version}", package],
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    except FileNotFoundError:
        shown = ""
    return re.sub(r"^\d+:|[-+].*", "", shown) or "is not installed"


def write_row(page: Path, row: str, head: str = HEAD, keys: int = 1) -> None:
    """Put a row into the page's table, in place of the one for the same neighbour.

    The first cells, as many as `keys`, tell a row from all others.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    first = lines.index(head) + 2
    end = first
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    rows = {tuple(each.split("|")[1 : keys + 1]): each for each in [*lines[first:end], row]}
    lines[first:end] = [rows[name] for name in sorted(rows)]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
