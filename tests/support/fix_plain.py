"""Plugin: with REAL_POOL_PLAIN=1 each pool of psycopg_pool stays as Django made it.

As where psycopg_pool is not made of what `RealPool` overrides: slower, and everything but
what is listed here still holds.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

IS_PLAIN = os.environ.get("REAL_POOL_PLAIN", "") not in ("", "0")

WHY = "F5: psycopg_pool does not tell why it can't connect, and goes on trying"
CHECKS = "C1: Django's check of a connection is made by the pool, as a round trip"
IN_TURN = "an idle pool gives out its connections in turn"
RETRIES = "F2: psycopg_pool waits twice as long after each attempt to connect"
LINE = "F4: who has waited in vain stays in psycopg_pool's line"

#: Tests of what a pool does that psycopg_pool's own does not, by their names.
EXPECTED = {
    "test_a_receiver_that_raised_is_asked_again[native]": IN_TURN,
    "test_exhausted_pool_that_lost_its_server_says_so[native]": WHY,
    "test_long_outage_does_not_slow_the_return[native]": f"{WHY}; {RETRIES}",
    "test_one_query_is_one_round_trip[native-option1]": CHECKS,
    "test_reason_is_told_as_fast_as_without_a_pool[native-no such database]": WHY,
    "test_reason_is_told_as_fast_as_without_a_pool[native-refused port]": WHY,
    "test_reason_is_told_as_fast_as_without_a_pool[native-wrong password]": WHY,
    "test_reason_why_no_connection_can_be_configured_is_told": WHY,
    "test_who_has_gone_does_not_wait[native]": LINE,
}


def pytest_configure(config: pytest.Config) -> None:
    if IS_PLAIN:
        from django_pg_real_pool._pools.real_pool import RealPool

        RealPool.adopt = lambda pool: False  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items if IS_PLAIN else ():
        reason = EXPECTED.get(item.name)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"with a plain pool: {reason}"))
