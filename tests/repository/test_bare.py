"""What `nox -s bare` does on its machine, as far as it can be seen without making one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bare import __main__ as bare
from places import CHECKOUT

pytestmark = pytest.mark.skipif(
    not (CHECKOUT / ".git").exists(), reason="it needs a checkout"
)


def test_it_follows_the_readme() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert bare.commands(readme) == (
        "python3 -m venv .venv && . .venv/bin/activate",
        "pip install nox && nox -s demo",
        "pip install nox && nox -s tests",
    )


def refusing(*refused: str) -> Any:
    """Return a `subprocess.run` where some programs fail, and all others do nothing."""

    def run(command: Any, **kwargs: Any) -> Any:
        fails = command[0] in refused
        return subprocess.CompletedProcess(command, fails, "", "it\nwas refused\n")

    return run


@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ("root", "a bare machine can only be made by root"),
        ("debootstrap", "there is no debootstrap on this machine"),
        ("network", "Debian sid can't be had: debootstrap: was refused"),
        ("namespaces", "this machine may not make namespaces: unshare: was refused"),
        ("nothing", ""),
    ],
)
def test_it_says_why_it_can_not_be_made(
    lacking: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the session is skipped, by name, instead of failing."""
    has: dict[str, Any] = {"root": 0, "debootstrap": "/usr/sbin/debootstrap"}
    has[lacking] = 1000 if lacking == "root" else None
    monkeypatch.setattr(os, "geteuid", lambda: has["root"])
    monkeypatch.setattr(shutil, "which", lambda name: has.get(name, f"/bin/{name}"))
    programs = {"network": "debootstrap", "namespaces": "unshare"}
    monkeypatch.setattr(subprocess, "run", refusing(programs.get(lacking, "")))
    machine = tmp_path / "machine"
    (tmp_path / "machine.unfinished").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    assert bare.make(machine) == why
    assert machine.exists() == (lacking in ("namespaces", "nothing"))
