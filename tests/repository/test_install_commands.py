"""What the docs and the messages tell people to install is this project, or says so.

Up to 1.1.0 the name is another project's, with the same ENGINE name: whoever asks an index
for the bare name gets that one, and notices nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dummy_index import NAME, VERSION, make_dummy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from places import CHECKOUT

ROOT = CHECKOUT
#: Where somebody reads what to type, or a machine does.
TEXTS = sorted(
    path
    for path in [
        *(ROOT / "README.md", ROOT / "noxfile.py", ROOT / "pyproject.toml"),
        *ROOT.glob(".github/**/*.*"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("django_pg_real_pool/**/*.py"),
    ]
    if "_build" not in path.parts
)
PIP = re.compile(r"\bpip3? +(?:install|wheel|download) +(?P<arguments>[^`\n|]+)")
NAMED = re.compile(
    rf"(?<![\w/.-]){NAME}(?P<rest>(?:\[[\w, -]+\])? *(?:[=<>~!]=?=?[^'\"`\s]+)?)"
)


def requirements_in(text: str) -> Iterator[str]:
    """Yield what a text lets pip look for on an index, by our name."""
    for match in PIP.finditer(text):
        try:
            words = shlex.split(match["arguments"])
        except ValueError:  # the quote that ends a string of Python's
            words = match["arguments"].split()
        for word in words:
            try:
                requirement = Requirement(word.strip("'\""))
            except InvalidRequirement:  # an option or a path
                continue
            if canonicalize_name(requirement.name) == NAME and not requirement.url:
                yield str(requirement)
    for match in NAMED.finditer(text):
        if match["rest"].strip():
            yield NAME + match["rest"]


def asked_for() -> list[tuple[str, str]]:
    return [
        (str(path.relative_to(ROOT)), requirement)
        for path in TEXTS
        for requirement in requirements_in(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$ python -m pip install django-pg-real-pool x", ["django-pg-real-pool"]),
        ("`pip install Django_PG.real-pool`", ["Django_PG.real-pool"]),
        ("'pip install -U django-pg-real-pool'", ["django-pg-real-pool"]),
        ("pip install ../django-pg-real-pool 'a[b]'", []),
        ("pip install 'django-pg-real-pool>=2'", ["django-pg-real-pool>=2"] * 2),
        ('dependencies = ["django-pg-real-pool[a]>=1"]', ["django-pg-real-pool[a]>=1"]),
        ("# django-pg-real-pool", []),
    ],
)
def test_the_commands_are_found(text: str, found: list[str]) -> None:
    assert list(requirements_in(text)) == found


def test_no_command_asks_for_the_name_of_another_project() -> None:
    wrong = [
        (path, requirement)
        for path, requirement in asked_for()
        if Requirement(requirement).specifier.contains(VERSION)
    ]
    assert wrong == []


def test_pip_refuses_the_other_project(tmp_path: Path) -> None:
    """The same, by pip, from a folder that has only the other one."""
    make_dummy(tmp_path)
    requirements = {requirement for _, requirement in asked_for()}
    assert requirements
    assert "Would install" in install(tmp_path, NAME)  # which is the danger
    for requirement in requirements:
        assert "No matching distribution" in install(tmp_path, requirement)


def install(folder: Path, requirement: str) -> str:
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--no-index"),
            *("--ignore-installed", "--no-deps", "--find-links", str(folder), requirement),
        ],
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr
