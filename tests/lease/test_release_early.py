"""R1, R2, R4, R5, R7: the connection goes back when the last hold ends."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from itertools import permutations
from typing import Any

import pytest
from django.db import (
    IntegrityError,
    ProgrammingError,
    close_old_connections,
    connections,
    transaction,
)
from django.db.models import Value
from django.db.models.functions import Concat
from django.db.transaction import atomic
from helpers import backend_pid, census, run_in_thread
from items import Item
from leases import (
    HOLDS,
    ROWS,
    Undo,
    add,
    autocommit_off,
    begun_by_hand,
    block,
    committed,
    fill,
    is_leased,
    names_and_pids,
    open_cursor,
    pin,
)
from settings import STOCK_OF
from traffic import DryPool, Traffic

from django_pg_real_pool import pin_connection

pytest_plugins = ["fix_traffic"]


# ##### The one rule #####


@pytest.mark.parametrize("hold", HOLDS)
def test_each_hold_alone_is_the_lease(warm: str, hold: Any) -> None:
    """The one rule: leased while it lasts, not before and not after."""
    assert not is_leased(warm)
    with hold(warm):
        assert is_leased(warm)
    assert not is_leased(warm)


@pytest.mark.parametrize("transacting", [block, autocommit_off, begun_by_hand])
def test_whatever_ends_first_the_lease_ends_with_the_last(
    warm: str, transacting: Any
) -> None:
    """The one rule: holds are a set of reasons; no order of them matters."""
    for entering in permutations([open_cursor, transacting, pin]):
        for leaving in permutations(range(len(entering))):
            holds = [hold(warm) for hold in entering]
            for hold in holds:
                hold.__enter__()
                assert is_leased(warm)
            for left, position in enumerate(leaving, start=1):
                holds[position].__exit__(None, None, None)
                assert is_leased(warm) is (left < len(holds)), (entering, leaving[:left])


def test_all_holds_of_a_lease_are_of_one_connection(warm: str) -> None:
    """The one rule: while anything is held, everything runs on the same connection."""
    with pin_connection(warm):
        pids = {backend_pid(warm)}
        with atomic(using=warm):
            pids.add(backend_pid(warm))
            with connections[warm].cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                pids.add(cursor.fetchone()[0])
        pids.add(backend_pid(warm))
    assert len(pids) == 1


@pytest.mark.parametrize("how", ["ensure_connection", "connect"])
@pytest.mark.parametrize("hold", HOLDS)
def test_an_explicit_connect_holds_until_another_hold_ends(
    warm: str, wrapper: Any, how: str, hold: Any
) -> None:
    """The one rule: what user code connected by hand stays until something else ends."""
    getattr(wrapper, how)()
    assert is_leased(warm)
    assert wrapper.get_autocommit()
    assert is_leased(warm)
    with hold(warm):
        assert is_leased(warm)
    assert not is_leased(warm)


@pytest.mark.parametrize("how", ["ensure_connection", "connect"])
def test_an_explicit_connect_holds_until_close(warm: str, wrapper: Any, how: str) -> None:
    """The one rule: or until `close()`."""
    getattr(wrapper, how)()
    getattr(wrapper, how)()
    assert is_leased(warm)
    wrapper.close()
    assert not is_leased(warm)


def test_an_explicit_connect_joins_a_lease_that_is_there(warm: str, wrapper: Any) -> None:
    """The one rule: where something is held, there is nothing to connect."""
    with wrapper.cursor():
        before = wrapper.connection
        wrapper.ensure_connection()
        assert wrapper.connection is before
    assert not is_leased(warm)


# ##### R1 #####


def run_a_query(wrapper: Any) -> None:
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")


def close_a_cursor(wrapper: Any) -> None:
    cursor = wrapper.cursor()
    cursor.execute("SELECT 1")
    cursor.close()


def fail_a_query(wrapper: Any) -> None:
    with suppress(ProgrammingError), wrapper.cursor() as cursor:
        cursor.execute("SELECT no_such_column")


def leave_a_block(wrapper: Any) -> None:
    with atomic(using=wrapper.alias):
        add(wrapper.alias, "one")


def leave_a_durable_block(wrapper: Any) -> None:
    with atomic(using=wrapper.alias, durable=True):
        add(wrapper.alias, "one")


def leave_nested_blocks(wrapper: Any) -> None:
    with atomic(using=wrapper.alias), atomic(using=wrapper.alias):
        add(wrapper.alias, "one")


def leave_a_block_by_an_exception(wrapper: Any) -> None:
    with suppress(Undo), atomic(using=wrapper.alias):
        add(wrapper.alias, "one")
        raise Undo


def leave_a_block_that_failed(wrapper: Any) -> None:
    with suppress(IntegrityError), atomic(using=wrapper.alias):
        add(wrapper.alias, "twice")
        add(wrapper.alias, "twice")


def leave_a_block_to_be_rolled_back(wrapper: Any) -> None:
    with atomic(using=wrapper.alias):
        add(wrapper.alias, "one")
        transaction.set_rollback(True, using=wrapper.alias)


def commit(wrapper: Any) -> None:
    wrapper.set_autocommit(False)
    add(wrapper.alias, "one")
    wrapper.commit()


def roll_back(wrapper: Any) -> None:
    wrapper.set_autocommit(False)
    add(wrapper.alias, "one")
    wrapper.rollback()


def leave_pins(wrapper: Any) -> None:
    with pin_connection(wrapper.alias), pin_connection(wrapper.alias):
        pass


def fail_in_a_pin(wrapper: Any) -> None:
    with suppress(Undo), pin_connection(wrapper.alias):
        raise Undo


def use_the_orm(wrapper: Any) -> None:
    item = Item.objects.using(wrapper.alias).create(name="one")
    assert Item.objects.using(wrapper.alias).get() == item


def exhaust_an_iterator(wrapper: Any) -> None:
    list(Item.objects.using(wrapper.alias).iterator())


def break_out_of_an_iterator(wrapper: Any) -> None:
    Item.objects.using(wrapper.alias).bulk_create([Item(name="one"), Item(name="two")])
    rows: Any = Item.objects.using(wrapper.alias).iterator(chunk_size=1)
    next(rows)
    rows.close()


def close(wrapper: Any) -> None:
    wrapper.ensure_connection()
    wrapper.close()


def end_a_request(wrapper: Any) -> None:
    wrapper.ensure_connection()
    close_old_connections()


ENDINGS = {
    ending.__name__: ending
    for ending in (
        run_a_query,
        close_a_cursor,
        fail_a_query,
        leave_a_block,
        leave_a_durable_block,
        leave_nested_blocks,
        leave_a_block_by_an_exception,
        leave_a_block_that_failed,
        leave_a_block_to_be_rolled_back,
        commit,
        roll_back,
        leave_pins,
        fail_in_a_pin,
        use_the_orm,
        exhaust_an_iterator,
        break_out_of_an_iterator,
        close,
        end_a_request,
    )
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_is_back_in_the_pool_before_control_returns(
    warm: str, wrapper: Any, traffic: Traffic, ending: str
) -> None:
    """R1: at once, by the caller's thread, and each checkout has its one checkin."""
    ENDINGS[ending](wrapper)
    assert not is_leased(warm)
    assert traffic.checkouts == traffic.checkins > 0
    assert {move.thread for move in traffic.moves} == {threading.get_ident()}
    assert [move.direction for move in traffic.moves] == ["out", "in"] * traffic.checkouts
    wrapper.close()


@pytest.mark.parametrize("ending", ["commit", "roll_back"])
def test_with_autocommit_off_it_is_in_the_pool_between_transactions(
    warm: str, wrapper: Any, ending: str
) -> None:
    """R1: autocommit off is a mode and no hold; a transaction is."""
    wrapper.set_autocommit(False)
    for number in range(2):
        with wrapper.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES (%s)", [str(number)])
        assert is_leased(warm)
        getattr(wrapper, ending.replace("_", ""))()
        assert not is_leased(warm)
        assert wrapper.get_autocommit() is False
    wrapper.set_autocommit(True)


def test_a_connection_that_went_back_serves_another_thread_at_once(brief: DryPool) -> None:
    """R1: a pool of one is enough for two threads in turn, though neither closes."""
    pid = backend_pid(brief.alias)
    assert run_in_thread(lambda: backend_pid(brief.alias)) == pid
    with atomic(using=brief.alias):
        assert backend_pid(brief.alias) == pid
    assert run_in_thread(lambda: backend_pid(brief.alias)) == pid


# ##### R2 #####


def test_it_is_released_before_callbacks_run(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """R2: a callback may take as long as it likes; it sees what was committed."""
    seen: list[Any] = []

    def look() -> None:
        seen.append(
            (
                is_leased(warm),
                wrapper.in_atomic_block,
                wrapper.get_autocommit(),
                wrapper.needs_rollback,
                wrapper.savepoint_ids,
                wrapper.atomic_blocks,
                committed(observer),
            )
        )

    with atomic(using=warm):
        with atomic(using=warm):
            add(warm, "one")
            transaction.on_commit(look, using=warm)
        transaction.on_commit(look, using=warm, robust=True)
    assert seen == [(False, False, True, False, [], [], ["one"])] * 2
    assert not is_leased(warm)


def test_a_callback_can_query_and_open_blocks(warm: str, observer: Any) -> None:
    """R2: queries check out again, and a block in a callback is a block of its own."""
    seen: list[Any] = []

    def run() -> None:
        with suppress(Undo), atomic(using=warm):
            add(warm, "undone")
            raise Undo
        with atomic(using=warm, durable=True):
            add(warm, "in a callback")
            assert is_leased(warm)
            transaction.on_commit(lambda: seen.append(is_leased(warm)), using=warm)
        assert not is_leased(warm)
        add(warm, "after it")
        seen.append(committed(observer))

    with atomic(using=warm):
        add(warm, "one")
        transaction.on_commit(run, using=warm)
        transaction.on_commit(lambda: seen.append(is_leased(warm)), using=warm)
    assert seen == [False, ["one", "in a callback", "after it"], False]


def test_callbacks_run_after_a_failed_one_only_if_it_is_robust(
    warm: str, observer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """R2: and what a raising callback raises comes out of the block, as in stock."""

    def program(alias: str) -> list[str]:
        seen: list[str] = []

        def fail() -> None:
            seen.append("fails")
            raise Undo

        try:
            with atomic(using=alias):
                add(alias, f"by {alias}")
                transaction.on_commit(lambda: seen.append("first"), using=alias)
                transaction.on_commit(fail, using=alias, robust=True)
                transaction.on_commit(lambda: seen.append("second"), using=alias)
                transaction.on_commit(fail, using=alias)
                transaction.on_commit(lambda: seen.append("never"), using=alias)
        except Undo:
            seen.append("raised")
        seen.append(str(connections[alias].get_autocommit()))
        with atomic(using=alias):
            add(alias, f"again by {alias}")
        seen.append("goes on")
        connections[alias].close()
        return seen

    caplog.set_level(logging.CRITICAL, "django.db.backends.base")
    assert program(warm) == program(STOCK_OF[warm])
    assert not is_leased(warm)


def test_callbacks_of_manual_transactions_run_without_a_connection(
    warm: str, wrapper: Any
) -> None:
    """R2: with autocommit off they run when it is switched on, after the release."""
    seen: list[bool] = []
    wrapper.set_autocommit(False)
    with atomic(using=warm):
        add(warm, "one")
        transaction.on_commit(lambda: seen.append(is_leased(warm)), using=warm)
    assert is_leased(warm)
    wrapper.commit()
    assert not is_leased(warm)
    assert seen == []
    wrapper.set_autocommit(True)
    assert seen == [False]


def test_another_hold_keeps_the_connection_for_callbacks(warm: str) -> None:
    """R2: what is pinned, or has an open cursor, is not released by a commit."""
    seen: list[bool] = []
    with pin_connection(warm), atomic(using=warm):
        add(warm, "one")
        transaction.on_commit(lambda: seen.append(is_leased(warm)), using=warm)
    with connections[warm].cursor(), atomic(using=warm):
        add(warm, "two")
        transaction.on_commit(lambda: seen.append(is_leased(warm)), using=warm)
    # The cursor is closed after the block, the pin is left after the block.
    assert seen == [True, True]
    assert not is_leased(warm)


# ##### R4 #####


def test_with_two_cursors_the_last_close_ends_the_lease(
    warm: str, wrapper: Any, traffic: Traffic
) -> None:
    """R4: whichever is closed first, and however many there are."""
    for order in permutations(range(3)):
        cursors = [wrapper.cursor() for _ in range(3)]
        for left, position in enumerate(order, start=1):
            assert is_leased(warm)
            cursors[position].close()
            for still_open in (c for n, c in enumerate(cursors) if n not in order[:left]):
                still_open.execute("SELECT 1")
                assert still_open.fetchone() == (1,)
        assert not is_leased(warm)
    assert traffic.checkouts == 6


def test_a_cursor_closed_twice_ends_one_hold(warm: str, wrapper: Any) -> None:
    """R4: a close too many does not count for another cursor."""
    one, two = wrapper.cursor(), wrapper.cursor()
    one.close()
    one.close()
    assert is_leased(warm)
    two.execute("SELECT 1")
    assert two.fetchone() == (1,)
    two.close()
    assert not is_leased(warm)


def test_an_iterator_reads_every_row_from_one_connection(warm: str, observer: Any) -> None:
    """R4: with transactions in between, that are committed and rolled back as usual."""
    names = fill(warm, 20)
    read, pids = [], set()
    for name, pid in names_and_pids(warm):
        read.append(name)
        pids.add(pid)
        with suppress(Undo), atomic(using=warm):
            Item.objects.using(warm).filter(name=name).update(
                name=Concat("name", Value(" seen"))
            )
            pids.add(backend_pid(warm))
            if name.endswith("1"):
                raise Undo
        assert is_leased(warm)
    assert read == names
    assert len(pids) == 1
    assert not is_leased(warm)
    assert sorted(committed(observer)) == [
        name if name.endswith("1") else f"{name} seen" for name in names
    ]


def test_two_iterators_can_be_read_in_turn(warm: str, traffic: Traffic) -> None:
    """R4: both are on the lease that began with the first, which ends with the last."""
    names = fill(warm, 10)
    before = traffic.checkouts
    one, two = names_and_pids(warm), names_and_pids(warm)
    read = [(next(one), next(two)) for _ in range(5)]
    assert is_leased(warm)
    rest_of_one = list(one)
    assert is_leased(warm)
    rest_of_two = list(two)
    assert not is_leased(warm)
    assert [name for (name, _), _ in read] + [name for name, _ in rest_of_one] == names
    assert [name for _, (name, _) in read] + [name for name, _ in rest_of_two] == names
    assert traffic.checkouts == before + 1


def test_an_iterator_within_a_block_reads_every_row(warm: str, observer: Any) -> None:
    """R4: its end is not the end of the lease; the block's is."""
    names = fill(warm, 10)
    with atomic(using=warm):
        for name, _ in names_and_pids(warm):
            with atomic(using=warm):
                Item.objects.using(warm).filter(name=name).delete()
        assert is_leased(warm)
        assert len(committed(observer)) == len(names)
    assert not is_leased(warm)
    assert committed(observer) == []


def test_an_iterator_left_early_is_no_longer_a_hold(warm: str) -> None:
    """R4: `break` closes it, as Python drops the generator."""
    fill(warm, 10)
    for _ in names_and_pids(warm):
        assert is_leased(warm)
        break
    assert not is_leased(warm)


def test_raw_server_side_cursors_can_be_read_in_turn(warm: str, wrapper: Any) -> None:
    """R4: the same below the ORM, with rows still to be fetched when one is closed."""
    with wrapper.chunked_cursor() as one:
        one.execute(ROWS.format(50))
        with wrapper.chunked_cursor() as two:
            two.execute(ROWS.format(50))
            pairs = [(one.fetchone(), two.fetchone()) for _ in range(10)]
        assert is_leased(warm)
        rest = one.fetchall()
    assert not is_leased(warm)
    assert [row[1] for row, _ in pairs] + [row[1] for row in rest] == list(range(1, 51))
    assert len({row[0] for pair in pairs for row in pair} | {row[0] for row in rest}) == 1


# ##### R5 #####


def test_a_cursor_of_an_ended_lease_does_not_end_the_present_one(
    warm: str, wrapper: Any
) -> None:
    """R5: after `close()` its hold is gone; what it does is its own affair."""
    old = wrapper.cursor()
    wrapper.close()
    new = wrapper.cursor()
    old.close()
    assert is_leased(warm)
    new.execute("SELECT 1")
    assert new.fetchone() == (1,)
    new.close()
    assert not is_leased(warm)
    old.close()


@pytest.mark.parametrize("server_side", [False, True])
def test_a_cursor_of_an_ended_lease_does_not_end_a_transaction(
    warm: str, wrapper: Any, observer: Any, server_side: bool
) -> None:
    """R5: closing it in the middle of a block loses nothing."""
    old = wrapper.chunked_cursor() if server_side else wrapper.cursor()
    old.execute(ROWS.format(10))
    wrapper.close()
    with atomic(using=warm):
        add(warm, "one")
        old.close()
        assert is_leased(warm)
        add(warm, "two")
        assert committed(observer) == []
    assert committed(observer) == ["one", "two"]
    assert not is_leased(warm)


@pytest.mark.parametrize("server_side", [False, True])
@pytest.mark.parametrize("written", ["before", "after", "never"])
def test_a_cursor_closed_within_a_later_block_does_not_end_the_block(
    warm: str, wrapper: Any, observer: Any, server_side: bool, written: str
) -> None:
    """R5: who opened the lease does not matter, only what still needs it."""
    cursor = wrapper.chunked_cursor() if server_side else wrapper.cursor()
    cursor.execute(ROWS.format(10))
    with atomic(using=warm):
        if written == "before":
            add(warm, "kept")
        cursor.close()
        if written == "after":
            add(warm, "kept")
        assert is_leased(warm) is (written != "never")
    assert not is_leased(warm)
    assert committed(observer) == ([] if written == "never" else ["kept"])


def test_a_cursor_opened_within_a_block_and_closed_after_it(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """R5: the block's end is not the cursor's; its lease goes on, in autocommit."""
    with atomic(using=warm):
        cursor = wrapper.cursor()
        cursor.execute("INSERT INTO item (name) VALUES ('in the block')")
    assert committed(observer) == ["in the block"]
    assert is_leased(warm)
    cursor.execute("INSERT INTO item (name) VALUES ('after it')")
    assert committed(observer) == ["in the block", "after it"]
    cursor.close()
    assert not is_leased(warm)


def test_a_rebuilt_cursor_of_an_ended_lease_changes_nothing(
    warm: str, wrapper: Any
) -> None:
    """R5: nor does a copy that a tool made around the same driver's cursor."""
    old = wrapper.cursor()
    copy = type(old)(old.cursor, wrapper)
    wrapper.close()
    with wrapper.cursor():
        copy.close()
        old.close()
        assert is_leased(warm)
    assert not is_leased(warm)


# ##### R7 #####


def test_no_connection_goes_back_twice(warm: str, wrapper: Any, traffic: Traffic) -> None:
    """R7: however often a cursor, a pin or the wrapper is closed."""
    cursor = wrapper.cursor()
    cursor.close()
    cursor.close()
    wrapper.close()
    wrapper.close()
    cursor = wrapper.cursor()
    wrapper.close()
    cursor.close()
    wrapper.close()
    with pin_connection(warm):
        wrapper.close()
        with atomic(using=warm):
            add(warm, "one")
    with atomic(using=warm):
        add(warm, "two")
        wrapper.close()
        wrapper.close()
    assert not is_leased(warm)
    directions = [move.direction for move in traffic.moves]
    assert directions == ["out", "in"] * traffic.checkouts


def test_two_wrappers_never_have_the_same_connection(warm: str, wrapper: Any) -> None:
    """R7: what one holds, the pool gives to nobody else."""
    other = wrapper.copy()
    for _ in range(3):
        with wrapper.cursor() as one, other.cursor() as two:
            one.execute("SELECT pg_backend_pid()")
            two.execute("SELECT pg_backend_pid()")
            assert one.fetchone() != two.fetchone()
    assert census(warm).in_use == 0
