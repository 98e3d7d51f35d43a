"""Sentry, which replaces methods of Django's wrapper and of its cursors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from django.db import transaction
from helpers import census, pool_of_one
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.transport import Transport
from settings import STOCK_OF
from side_by_side import same_for_all
from traffic import warm_up

from django_pg_real_pool import assert_released
from neighbours.visits import counting_connections, serve, visit


class Collected(Transport):  # type: ignore[misc]  # its class is Any to mypy
    """What would be sent, by type."""

    def __init__(self) -> None:
        super().__init__()
        self.payloads: dict[str, list[Any]] = {}

    def capture_envelope(self, envelope: Any) -> None:
        for item in envelope.items:
            self.payloads.setdefault(item.type, []).append(item.payload.json)

    def take(self, kind: str) -> Any:
        """Return the one payload of a type that there is, and forget it."""
        (payload,) = self.payloads.pop(kind)
        return payload


def start(**options: Any) -> Collected:
    """Return what Sentry gets, with all switched on that it can know of a database."""
    collected = Collected()
    sentry_sdk.init(
        dsn="http://key@localhost/1",
        transport=collected,
        integrations=[DjangoIntegration(db_transaction_spans=True)],
        traces_sample_rate=1.0,
        enable_db_query_source=True,
        db_query_source_threshold_ms=0,
        max_breadcrumbs=100,
        **options,
    )
    return collected


@pytest.fixture
def sentry(alias: str) -> Iterator[Collected]:
    warm_up(alias)
    warm_up(STOCK_OF[alias])
    yield start()
    sentry_sdk.init()


def spans(sentry: Collected) -> list[Any]:
    """Return the spans of the database in the one transaction that was recorded."""
    found = sentry.take("transaction")["spans"]
    return [each for each in found if each["op"].startswith("db")]


def texts(found: list[Any]) -> list[str]:
    return [same_for_all(each.get("description") or each.get("message")) for each in found]


def test_a_page_has_the_spans_that_it_has_on_stock(alias: str, sentry: Collected) -> None:
    """D1: each statement, COMMIT and ROLLBACK; but no "connect", of which stock has one."""
    visit(alias)
    ours = texts(spans(sentry))
    visit(STOCK_OF[alias])
    assert ["connect", *ours] == texts(spans(sentry))
    assert {"COMMIT", "ROLLBACK"} <= set(ours)


def test_a_span_tells_the_database_and_the_line(alias: str, sentry: Collected) -> None:
    """D1: the line of the view that made the query, not one of Django's nor of ours."""

    def data(name: str) -> list[Any]:
        visit(name)
        return [
            {key: value for key, value in each["data"].items() if key in told}
            for each in spans(sentry)
            if each["description"] != "connect"
        ]

    told = {"db.system", "db.name", "server.port", "code.function", "code.filepath"}
    ours = data(alias)
    assert ours == data(STOCK_OF[alias])
    assert {"query", "block", "loop", "cursor"} <= {
        each.get("code.function") for each in ours
    }


def test_spans_may_be_sent_one_by_one(alias: str, sentry: Collected) -> None:
    """D1: the other way that Sentry has, in which it looks at the connection at once."""
    found = []
    for name in (alias, STOCK_OF[alias]):
        streamed = start(trace_lifecycle="stream")
        visit(name)
        sentry_sdk.flush()
        found.append(
            [
                same_for_all(each["name"])
                for payload in streamed.payloads["span"]
                for each in payload["items"]
                if each["attributes"].get("sentry.op", {}).get("value") == "db"
            ]
        )
    assert ["connect", *found[0]] == found[1]
    assert {"COMMIT", "ROLLBACK"} <= set(found[0])


def test_a_block_that_does_nothing_has_no_span(alias: str, sentry: Collected) -> None:
    """A2: nothing is sent, so there is nothing to time."""
    nothing = transaction.atomic(using=alias)
    with sentry_sdk.start_transaction(name="test"), nothing, nothing:
        pass
    assert spans(sentry) == []


def test_an_error_is_reported_with_what_came_before(
    alias: str, sentry: Collected, observer: Any
) -> None:
    """R3: its frames are looked at while a cursor and a block are open; then they end."""

    def crumbs(name: str) -> list[str]:
        assert serve(f"/{name}/failing/").status_code == 500
        event = sentry.take("event")
        assert event["exception"]["values"][0]["type"] == "Undone"
        frame = event["exception"]["values"][0]["stacktrace"]["frames"][-1]
        assert frame["function"] == "failing_page"
        assert "opened" in frame["vars"]
        found = event["breadcrumbs"]["values"]
        return texts([each for each in found if each["category"] == "query"])

    ours = crumbs(alias)
    assert_released(alias)
    assert census(alias).in_use == 0
    assert ["connect", *ours] == crumbs(STOCK_OF[alias])
    assert observer.execute("SELECT count(*) FROM item").fetchone() == (0,)


def test_a_page_has_one_connection_announced(alias: str, sentry: Collected) -> None:
    """D4: not one for each of its queries; and no span "connect" for any of them."""
    with pool_of_one(alias), counting_connections(alias) as announced:
        for number in range(1, 4):
            visit(alias)
            assert len(announced) == number
            assert "connect" not in texts(spans(sentry))
