"""Plugin: Hypothesis profiles, and how many steps the differential test has run.

The default profile takes seconds.  `--hypothesis-profile=long` runs the session of
`nox -s property`.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

#: What any program may need: a server answers in its own time.
_COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "print_blob": True,
    "report_multiple_bugs": False,
}

#: Programs for each engine, steps in each program, and the fewest steps in all of them.
PROFILES = {"default": (20, 40, 0), "long": (450, 50, 17_000)}

#: The same for the wild programs, of which each takes pools of its own.
WILD = {"default": (8, 30, 0), "long": (280, 40, 8_000)}

for _name, (_programs, _steps, _) in PROFILES.items():
    settings.register_profile(
        _name, max_examples=_programs, stateful_step_count=_steps, **_COMMON
    )
settings.load_profile("default")

#: Steps run so far, by engine.
steps: dict[str, int] = {}


def fewest_steps() -> int:
    """Return how many steps an engine must run with the profile that is loaded."""
    programs = settings().max_examples
    return next((least for count, _, least in PROFILES.values() if count == programs), 0)


def wild() -> tuple[int, int, int]:
    """Return the programs, steps and fewest steps of `WILD` with the profile that is loaded."""
    programs = settings().max_examples
    name = next((name for name, each in PROFILES.items() if each[0] == programs), "default")
    return WILD[name]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if steps:
        each = ", ".join(f"{engine} {count}" for engine, count in sorted(steps.items()))
        terminalreporter.write_line(
            f"differential test: {sum(steps.values())} steps ({each})"
        )
