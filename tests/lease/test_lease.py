"""The one rule, without a database: which event begins which hold, and ends which."""

from __future__ import annotations

import ast
import sys
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

from django_pg_real_pool._lease import rule
from django_pg_real_pool._lease.rule import TABLE, Event, Hold, Holds


@pytest.fixture(autouse=True)
def _nothing_leaks() -> None:
    """Nothing here has a connection that could leak."""


#: The contract's table once more, by hand: hold -> (what begins it, what ends it).
CONTRACT: dict[Hold, tuple[Event, set[Event]]] = {
    Hold.CURSOR: (Event.CURSOR_OPENED, {Event.CURSOR_CLOSED}),
    Hold.TRANSACTION: (Event.TRANSACTION_BEGAN, {Event.TRANSACTION_ENDED}),
    Hold.PIN: (Event.PIN_ENTERED, {Event.PIN_LEFT}),
    Hold.SESSION: (Event.SESSION_CHANGED, set()),
    Hold.CONNECT: (
        Event.CONNECTED,
        # "the next time any other hold ends"
        {Event.CURSOR_CLOSED, Event.TRANSACTION_ENDED, Event.PIN_LEFT},
    ),
}

#: An ending event, and the hold that it is the end of.
ENDING = {
    Event.CURSOR_CLOSED: Hold.CURSOR,
    Event.TRANSACTION_ENDED: Hold.TRANSACTION,
    Event.PIN_LEFT: Hold.PIN,
}

STATES = [
    frozenset(holds)
    for holds in chain.from_iterable(
        combinations(CONTRACT, size) for size in range(len(CONTRACT) + 1)
    )
]

#: Who has a hold.  Of transactions, sessions and explicit connects there is only one.
WHO: dict[Hold, Any] = {
    Hold.CURSOR: "a cursor",
    Hold.TRANSACTION: None,
    Hold.PIN: "a pin",
    Hold.SESSION: None,
    Hold.CONNECT: None,
}


def lease_with(holds: frozenset[Hold]) -> Holds:
    """Make a lease that got each of `holds` by the event that begins it."""
    lease = Holds()
    for hold in holds:
        lease.happened(CONTRACT[hold][0], WHO[hold])
    assert set(lease.now) == holds
    return lease


def contract_says(holds: frozenset[Hold], event: Event) -> frozenset[Hold]:
    if event is Event.CLOSED:
        return frozenset()
    for hold, (begins, _) in CONTRACT.items():
        if event is begins:
            return holds | {hold}
    if ENDING[event] not in holds:
        return holds
    return frozenset(hold for hold in holds if event not in CONTRACT[hold][1])


def who_of(event: Event) -> Any:
    if event in ENDING:
        return WHO[ENDING[event]]
    return next(
        (WHO[hold] for hold, (begins, _) in CONTRACT.items() if begins is event), None
    )


def names(state: frozenset[Hold]) -> str:
    return "+".join(sorted(hold.name for hold in state)) or "nothing"


def test_the_table_has_each_event_and_each_hold() -> None:
    """The one rule: nothing is decided outside the table."""
    assert set(TABLE) == set(Event)
    assert set(CONTRACT) == set(Hold)
    assert {transition.begins for transition in TABLE.values()} - {None} == set(Hold)
    for event, transition in TABLE.items():
        assert (transition.begins is None) is bool(transition.ends), event
    for hold in Hold:
        assert hold in TABLE[Event.CLOSED].ends


@pytest.mark.parametrize("event", TABLE, ids=lambda event: event.name)
@pytest.mark.parametrize("state", STATES, ids=names)
def test_each_event_leads_from_each_state_where_the_contract_says(
    state: frozenset[Hold], event: Event
) -> None:
    """The one rule: what an event begins and ends, whatever else is held."""
    lease = lease_with(state)
    lease.happened(event, who_of(event))
    assert set(lease.now) == contract_says(state, event)


@pytest.mark.parametrize("event", ENDING, ids=lambda event: event.name)
@pytest.mark.parametrize("state", STATES, ids=names)
def test_an_ending_once_too_often_changes_nothing(
    state: frozenset[Hold], event: Event
) -> None:
    """The one rule: a hold ends once, and only for who has it."""
    lease = lease_with(state | {ENDING[event]})
    lease.happened(event, who_of(event))
    lease.happened(CONTRACT[Hold.CONNECT][0])  # which the first end would end
    before = {hold: dict(holders) for hold, holders in lease.now.items()}
    lease.happened(event, who_of(event))
    assert lease.now == before


@pytest.mark.parametrize("event", [Event.CURSOR_CLOSED, Event.PIN_LEFT])
@pytest.mark.parametrize("state", STATES, ids=names)
def test_a_stranger_ends_nothing(state: frozenset[Hold], event: Event) -> None:
    """R5: who has no hold of this lease changes nothing about it."""
    lease = lease_with(state)
    before = {hold: dict(holders) for hold, holders in lease.now.items()}
    lease.happened(event, "a stranger")
    assert lease.now == before


@pytest.mark.parametrize(
    ("begins", "ends", "hold"),
    [
        (Event.CURSOR_OPENED, Event.CURSOR_CLOSED, Hold.CURSOR),
        (Event.PIN_ENTERED, Event.PIN_LEFT, Hold.PIN),
    ],
)
@pytest.mark.parametrize("first_out", [0, 1, 2])
def test_what_several_have_ends_with_the_last(
    begins: Event, ends: Event, hold: Hold, first_out: int
) -> None:
    """R4: with two cursors open, and with pins that nest, one end is not the end."""
    lease = Holds()
    lease.happened(Event.CONNECTED)
    everyone = ["one", "two", "three"]
    for who in everyone:
        lease.happened(begins, who)
    leaving = everyone[first_out:] + everyone[:first_out]
    for who in leaving[:-1]:
        lease.happened(ends, who)
        assert set(lease.now) == {Hold.CONNECT, hold}
        lease.happened(ends, who)  # a second time, which is once too often
        assert set(lease.now) == {Hold.CONNECT, hold}
    lease.happened(ends, leaving[-1])
    assert not lease.now


def test_one_cursor_seen_twice_is_one_holder() -> None:
    """R5: tools rebuild a cursor around the same driver's cursor; that is one hold."""
    lease = Holds()
    lease.happened(Event.CURSOR_OPENED, "a cursor")
    lease.happened(Event.CURSOR_OPENED, "a cursor")
    lease.happened(Event.CURSOR_CLOSED, "a cursor")
    assert not lease.now


def test_close_ends_the_hold_of_everybody() -> None:
    """R8: `close()` ends every hold, however many have it."""
    lease = lease_with(STATES[-1])
    lease.happened(Event.CURSOR_OPENED, "another cursor")
    lease.happened(Event.PIN_ENTERED, "another pin")
    lease.happened(Event.CLOSED)
    assert not lease.now
    assert lease.describe() == []


class Cursor:
    """Something that can be found, until it is lost."""


def test_only_cursors_that_nobody_can_close_are_lost() -> None:
    """R6: a cursor that is gone is found dead; one that is open is not."""
    lease = Holds()
    kept, dropped = Cursor(), Cursor()
    found: dict[str, Cursor | None] = {"kept": kept, "dropped": dropped}
    lease.happened(Event.CURSOR_OPENED, "kept", lambda: found["kept"])
    lease.happened(Event.CURSOR_OPENED, "dropped", lambda: found["dropped"])
    lease.happened(Event.CURSOR_OPENED, "can't be found")
    lease.happened(Event.PIN_ENTERED, "a pin", lambda: None)
    assert list(lease.lost()) == []

    found["dropped"] = None
    assert list(lease.lost()) == [(Event.CURSOR_CLOSED, "dropped")]


def test_lost_cursors_can_be_ended_while_they_are_listed() -> None:
    """R6: all of them are reclaimed in one go, and only then nothing is held."""
    lease = Holds()
    for number in range(3):
        lease.happened(Event.CURSOR_OPENED, number, lambda: None)
    seen = []
    for event, who in lease.lost():
        lease.happened(event, who)
        seen.append(who)
    assert seen == [0, 1, 2]
    assert not lease.now


def test_a_lease_without_cursors_has_lost_none() -> None:
    """R6: looking for lost cursors needs no cursor hold."""
    assert list(lease_with(frozenset({Hold.PIN, Hold.TRANSACTION})).lost()) == []


def test_it_describes_each_holder_with_where_it_began() -> None:
    """P2: an error can name the holds, and where each began if that is known."""
    lease = Holds()
    assert lease.describe() == []
    assert repr(lease) == "<Holds: no holds>"
    lease.happened(Event.CURSOR_OPENED, 1)
    lease.happened(Event.CURSOR_OPENED, 2)
    lease.origins[2] = "views.py:7 in index"
    lease.happened(Event.TRANSACTION_BEGAN)
    assert lease.describe() == [
        "open cursor",
        "open cursor (began at views.py:7 in index)",
        "transaction",
    ]
    assert repr(lease) == (
        "<Holds: open cursor, open cursor (began at views.py:7 in index), transaction>"
    )


def test_where_a_holder_began_is_forgotten_with_the_holder() -> None:
    """P2: a later cursor with the same identity must not show an earlier one's origin."""
    lease = Holds()
    lease.happened(Event.PIN_ENTERED, "a pin")
    lease.happened(Event.CURSOR_OPENED, 1)
    lease.origins[1] = "views.py:7 in index"
    lease.happened(Event.CURSOR_CLOSED, 1)
    lease.happened(Event.CURSOR_OPENED, 1)
    assert "open cursor" in lease.describe()
    assert lease.origins == {}

    lease.origins[1] = "views.py:9 in index"
    lease.happened(Event.CLOSED)
    assert lease.origins == {}


def test_where_a_transaction_began_is_forgotten_with_the_transaction() -> None:
    """P2: the next transaction must not show where the last one began."""
    lease = Holds()
    lease.happened(Event.PIN_ENTERED, "a pin")
    lease.happened(Event.TRANSACTION_BEGAN)
    lease.origins[None] = "views.py:7 in index"
    lease.happened(Event.TRANSACTION_ENDED)
    lease.happened(Event.TRANSACTION_BEGAN)
    assert lease.describe() == ["pin", "transaction"]


def test_the_policy_imports_nothing_but_the_standard_library() -> None:
    """The one rule: its module knows neither Django nor a driver."""
    tree = ast.parse(Path(rule.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "it imports another module of this library"
            imported.add(str(node.module).partition(".")[0])
    assert imported
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize("kind", [Hold, Event])
def test_holds_and_events_compare_and_hash_by_identity(kind: Any) -> None:
    """The one rule: a hold is a key of a dict, so equal names must stay one key."""
    assert len({*kind, *kind}) == len(kind)
    for member in kind:
        assert kind[member.name] is member
        assert hash(member) == object.__hash__(member)
