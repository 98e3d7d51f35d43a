"""Tests of Django that pass on stock and must not pass here.

Each asserts what the contract says is otherwise.  One that is listed and passes fails
the session like one that is not listed and fails, so nothing stays here that need not.
"""

from __future__ import annotations

from dataclasses import dataclass

R1 = (
    'R1: "When the last hold ends, the connection is back in its pool before control '
    'returns to the caller." '
)


@dataclass(frozen=True)
class Difference:
    test: str
    #: The sentence of the contract that the test contradicts, with its mark, and how.
    because: str
    #: "native" or "dj", "django" or "truncation"; None: both.
    engine: str | None = None
    mode: str | None = None


DIFFERENCES = [
    Difference(
        "backends.tests.ThreadTests.test_default_connection_thread_local",
        R1 + "The test asserts that three threads hold three connections between queries.",
    ),
    Difference(
        "backends.tests.BackendTestCase.test_is_usable_after_database_disconnects",
        R1 + "The test closes, behind the wrapper's back, the connection that stock holds "
        "between queries; here none is held, and the next query gets one that works.",
        engine="native",
    ),
    Difference(
        "backends.base.test_base.ConnectionHealthChecksTests.test_health_checks_enabled",
        R1 + "The test asserts that one connection follows another between queries.",
        engine="dj",
    ),
    Difference(
        "backends.base.test_base.ConnectionHealthChecksTests."
        "test_set_autocommit_health_checks_enabled",
        'A1: "set_autocommit() [...] checks nothing out." The test asserts that there is '
        "another connection after set_autocommit(False), before any statement.",
        engine="dj",
    ),
]
