"""What is measured of a pool, whoever exports it.

Names, units and meanings are those of OpenTelemetry's semantic conventions for pools of
database connections.  No label has a value that comes from outside: there are the aliases
of `DATABASES`, two states and five holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from django.apps import apps
from django.db import connections

from .. import Census, ConnectionReleaseMixin

PREFIX = "db.client.connection."

#: Attributes; the last is ours.
POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
HOLD = "django_pg_real_pool.hold"


class Metric(NamedTuple):
    """One of the nine, without the prefix."""

    name: str
    unit: str
    description: str


#: What is asked of a pool when somebody wants to know.
COUNT = Metric(
    "count",
    "{connection}",
    "The number of connections that are currently in state described by the `state` "
    "attribute.",
)
IDLE_MAX = Metric(
    "idle.max", "{connection}", "The maximum number of idle open connections allowed."
)
IDLE_MIN = Metric(
    "idle.min", "{connection}", "The minimum number of idle open connections allowed."
)
MAX = Metric("max", "{connection}", "The maximum number of open connections allowed.")
PENDING = Metric(
    "pending_requests",
    "{request}",
    "The number of current pending requests for an open connection.",
)
#: What is counted, or timed, as it happens.
TIMEOUTS = Metric(
    "timeouts",
    "{timeout}",
    "The number of connection timeouts that have occurred trying to obtain a connection "
    "from the pool.",
)
CREATE_TIME = Metric("create_time", "s", "The time it took to create a new connection.")
WAIT_TIME = Metric(
    "wait_time", "s", "The time it took to obtain an open connection from the pool."
)
USE_TIME = Metric(
    "use_time", "s", "The time between borrowing a connection and returning it to the pool."
)

OF_CENSUS = (COUNT, IDLE_MAX, IDLE_MIN, MAX, PENDING)
HISTOGRAMS = (CREATE_TIME, WAIT_TIME, USE_TIME)

#: Upper bounds of the buckets, in seconds.
BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)


class Reading(NamedTuple):
    """What one metric of `OF_CENSUS` is for one alias now."""

    metric: Metric
    alias: str
    #: "idle" or "used" of `COUNT`, else None.
    state: str | None
    value: int


def readings() -> Iterator[Reading]:
    """Yield what the pools of this process are like now.

    It takes no connection.  Of what a pool does not tell there is nothing.
    """
    for alias, census in _censuses():
        for metric, state, value in (
            (COUNT, "idle", census.idle),
            (COUNT, "used", census.in_use),
            (IDLE_MAX, None, census.idle_max),
            (IDLE_MIN, None, census.idle_min),
            (MAX, None, census.max_size),
            (PENDING, None, census.waiting),
        ):
            if value is not None:
                yield Reading(metric, alias, state, value)


def _censuses() -> Iterator[tuple[str, Census]]:
    if not apps.ready:
        return  # there may be no settings yet
    for alias in connections:
        wrapper = connections[alias]
        if isinstance(wrapper, ConnectionReleaseMixin):
            yield alias, wrapper._hooks.pool.census(wrapper)
