"""Programs of greenlets as real processes."""

from __future__ import annotations

import ast
from pathlib import Path

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


def run_program(name: str, **settings: object) -> None:
    given = {"ALIAS": "native", "POOL_SIZE": POOL, "POOL_TIMEOUT": 5, **settings}
    with running(["neighbours.green.programs", name], given) as program:
        assert program.process.wait(PATIENCE) == 0
        assert program.log.endswith("done\n")
        assert "Traceback" not in program.log
