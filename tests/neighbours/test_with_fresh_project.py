"""The tutorial, word for word, by somebody who has nothing yet.

The only thing that is changed on the way is the address of the database server.  pip finds
what `nox -s tutorial` has laid into a folder, and beside it another project of our name, as
on the public index.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from docs_scripts import load
from dummy_index import NAME, VERSION, make_dummy
from places import DOCS
from server import create_database

PAGE = DOCS / "tutorial" / "first-pool.md"
PICTURE = DOCS / "images" / "tutorial.png"
ROOT = DOCS.parent
#: A folder of wheels.
INDEX = os.environ.get("REAL_POOL_INDEX")
SITE = "http://127.0.0.1:8000/"

#: Seconds that anything may take, of which installing takes longest.
PATIENCE = 180

pytestmark = pytest.mark.skipif(INDEX is None, reason="it is run by `nox -s tutorial`")

CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--hide-scrollbars", "--window-size=760,440"),
]


class Shell:
    """A shell that somebody types into, one command after the other."""

    def __init__(self, directory: Path, index: list[Path]) -> None:
        ours = ("DJANGO", "PG", "PIP", "PYTEST", "PYTHON", "REAL_POOL", "VIRTUAL")
        env = {key: os.environ[key] for key in os.environ if not key.startswith(ours)}
        self.process = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env={
                **env,
                "PYTHONUNBUFFERED": "1",
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_FIND_LINKS": " ".join(map(str, index)),
                "PIP_NO_INDEX": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while character := self.process.stdout.read(1):
            self.output += character

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def run(self, command: str) -> str:
        """Run a command to its end; return what it printed."""
        before = len(self.output)
        self.type(f"{command}\necho END of it: $?")
        self.await_(lambda: "END of it: " in self.output[before:], command)
        printed, _, status = self.output[before:].partition("END of it: ")
        self.await_(lambda: "\n" in self.output[before + len(printed) :], command)
        status = self.output[before:].rpartition("END of it: ")[2]
        assert status.strip() == "0", f"{command}\n{printed}"
        return printed

    def await_(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what}: no end of it\n{self.output}"
            time.sleep(0.02)

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Cells(HTMLParser):
    """The texts of a page's table, row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._is_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        self._is_cell = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._is_cell:
            self.rows[-1].append(data)

    def handle_endtag(self, tag: str) -> None:
        self._is_cell = False


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    create_database("shop")
    (tmp_path / NAME).symlink_to(ROOT)
    others = tmp_path / "others"
    others.mkdir()
    make_dummy(others)
    shell = Shell(tmp_path, [Path(INDEX or ""), others])
    try:
        yield shell
    finally:
        shell.close()


def steps_of(text: str) -> Iterator[tuple[str, Any]]:
    """Yield what the page asks for, in its order: blocks of code, links and tables."""
    run_page = load("run_page")
    lines = text.splitlines(keepends=True)
    at = 0
    for block in run_page.blocks_of(PAGE):
        yield from prose("".join(lines[at : block.line - 1]))
        yield (block.language, block)
        at = block.line + block.code.count("\n")
    yield from prose("".join(lines[at:]))


def prose(text: str) -> Iterator[tuple[str, Any]]:
    for match in re.finditer(r"<(http:.+?)>|((?:^\|.*\|\n)+)", text, re.MULTILINE):
        if match[1]:
            yield ("link", match[1])
        else:
            rows = [line.strip("|").split("|") for line in match[2].splitlines()]
            yield (
                "table",
                [[cell.strip() for cell in row] for row in rows if "-" * 3 not in row[0]],
            )


def is_as_shown(printed: str, shown: str) -> bool:
    """Return whether an output is the page's, where `...` stands for what is left out."""
    return doctest.OutputChecker().check_output(
        shown, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )


def commands_of(code: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a block, and what is shown after it."""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def of_this_server(settings: str) -> str:
    for key in ("USER", "PASSWORD", "HOST", "PORT"):
        value = os.environ.get(f"PG{key}", "")
        before, given, after = settings.partition(f'"{key}": ')
        if given:
            settings = before + given + repr(value) + after[after.index(",\n") :]
    return settings


def fetch(url: str) -> tuple[int, str]:
    try:
        with urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_tutorial_word_for_word(shell: Shell, tmp_path: Path) -> None:
    """Each command, file, page and output is what the tutorial says."""
    project = tmp_path / "shop"
    url, tables, crowds = "", 0, 0
    for kind, what in steps_of(PAGE.read_text(encoding="utf-8")):
        if kind == "{code-block}" or kind == "python":
            file = project / what.caption
            is_more = file.name == "settings.py"
            assert file.exists() or file.parent.exists()
            with file.open("a" if is_more else "w", encoding="utf-8") as target:
                target.write("\n" + of_this_server(what.code) if is_more else what.code)
        elif kind == "console":
            for command, shown in commands_of(what.code):
                if command.endswith("runserver"):
                    before = len(shell.output)
                    shell.type(command)
                    shell.await_(
                        lambda before=before, shown=shown: is_as_shown(
                            shell.output[before:], shown
                        ),
                        command,
                    )
                else:
                    printed = shell.run(command)
                    assert is_as_shown(printed, shown), f"{command}\n{printed}"
        elif kind == "link":
            url = what
            if tables == 2:  # the crowd, on stock
                began = time.monotonic()
                status, page = fetch(url)
                assert status == 500
                assert "BrokenBarrierError" in page
                assert time.monotonic() - began < 15  # "after ten seconds"
                crowds += 1
        elif kind == "table":
            tables += 1
            assert url == SITE
            if tables == 1:
                take_picture(tmp_path)
            # The server reloads what was changed, in a moment.
            shell.await_(lambda rows=what: seen_at(SITE) == rows, f"a page with {what}")
        elif kind == "text":
            status, page = fetch(url)
            assert status == 200
            # How far the pool has grown by then is its own affair.
            assert re.sub(r"\d+", "N", page) == re.sub(r"\d+", "N", what.code.strip())
            crowds += 1
        else:
            raise AssertionError(f"nobody knows what to do with {kind}")
    assert (tables, crowds) == (2, 2)
    shown = subprocess.run(
        [project / ".venv" / "bin" / "python", "-m", "pip", "show", NAME],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"Version: {VERSION}" not in shown.splitlines()
    assert re.search(r"^Version: 2\.", shown, re.MULTILINE)


def seen_at(url: str) -> list[list[str]]:
    try:
        return Cells(fetch(url)[1]).rows
    except (URLError, ConnectionError):  # it starts anew
        return []


def take_picture(directory: Path) -> None:
    """Look at the page as the reader does, for the first time, and keep what is seen."""
    if shutil.which(CHROMIUM[0]) is None:
        return
    profile = directory / "chromium"
    subprocess.run(
        [*CHROMIUM, f"--user-data-dir={profile}", f"--screenshot={PICTURE}", SITE],
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
