"""A1-A5: a connection is checked out by the first cursor, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.core.handlers.base import BaseHandler
from django.db import (
    IntegrityError,
    OperationalError,
    close_old_connections,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper
from django.db.transaction import TransactionManagementError, atomic
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from helpers import backend_pid, census, wait_until
from items import Item
from leases import Undo, add, committed
from settings import STOCK_OF
from traffic import DryPool, Traffic

pytest_plugins = ["fix_traffic"]


def physical(wrapper: Any) -> Any:
    """Return the driver's connection, beneath whatever proxy a pool puts around it."""
    return getattr(wrapper.connection, "driver_connection", wrapper.connection)


def in_transaction(wrapper: Any) -> bool:
    return bool(physical(wrapper).info.transaction_status.name == "INTRANS")


# ##### A1 #####

#: Properties that ask the server, so that no wrapper can answer without it.
QUERYING = {"pg_version"}


def read_every_attribute(wrapper: Any) -> None:
    for name in dir(wrapper):
        if not name.startswith("_") and name not in QUERYING:
            getattr(wrapper, name)


def enter_and_leave_a_block(wrapper: Any) -> None:
    with atomic(using=wrapper.alias):
        assert wrapper.in_atomic_block


def enter_and_leave_nested_blocks(wrapper: Any) -> None:
    with atomic(using=wrapper.alias), atomic(using=wrapper.alias):
        assert wrapper.savepoint_ids


def switch_autocommit(wrapper: Any) -> None:
    wrapper.set_autocommit(False)
    assert wrapper.get_autocommit() is False
    wrapper.set_autocommit(True)
    assert wrapper.get_autocommit() is True


def commit_and_roll_back_nothing(wrapper: Any) -> None:
    wrapper.set_autocommit(False)
    wrapper.commit()
    wrapper.rollback()
    wrapper.set_autocommit(True)


def register_on_commit(wrapper: Any) -> None:
    calls = []
    transaction.on_commit(lambda: calls.append(1), using=wrapper.alias)
    assert calls == [1]


def register_on_commit_in_a_block(wrapper: Any) -> None:
    calls: list[int] = []
    with atomic(using=wrapper.alias):
        transaction.on_commit(lambda: calls.append(1), using=wrapper.alias)
        assert calls == []
    assert calls == [1]


def ask_for_rollback(wrapper: Any) -> None:
    with pytest.raises(TransactionManagementError):
        wrapper.get_rollback()
    with atomic(using=wrapper.alias):
        assert wrapper.get_rollback() is False


def make_a_savepoint(wrapper: Any) -> None:
    with atomic(using=wrapper.alias):
        sid = wrapper.savepoint()
        transaction.savepoint_rollback(sid, using=wrapper.alias)
        transaction.savepoint_commit(sid, using=wrapper.alias)


def validate(wrapper: Any) -> None:
    wrapper.validate_thread_sharing()
    wrapper.validate_no_atomic_block()
    wrapper.validate_no_broken_transaction()


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "atomic() entry": enter_and_leave_a_block,
    "nested atomic() entry": enter_and_leave_nested_blocks,
    "set_autocommit()": switch_autocommit,
    "commit() and rollback()": commit_and_roll_back_nothing,
    "get_autocommit()": lambda wrapper: wrapper.get_autocommit(),
    "on_commit()": register_on_commit,
    "on_commit() in a block": register_on_commit_in_a_block,
    "close_old_connections()": lambda wrapper: close_old_connections(),
    "close_if_unusable_or_obsolete()": lambda w: w.close_if_unusable_or_obsolete(),
    "close()": lambda wrapper: wrapper.close(),
    "get_rollback()": ask_for_rollback,
    "savepoint()": make_a_savepoint,
    "repr()": lambda wrapper: (repr(wrapper), str(wrapper)),
    "reading any attribute": read_every_attribute,
    "validate_...()": validate,
    "queries": lambda wrapper: wrapper.queries,
    "quote_name()": lambda wrapper: wrapper.ops.quote_name("item"),
    "a query set that is not evaluated": lambda w: str(Item.objects.using(w.alias).query),
}


@pytest.fixture(params=["fresh", "used", "in a block", "with autocommit off"])
def somehow(request: pytest.FixtureRequest, brief: DryPool) -> Iterator[Any]:
    """A wrapper without a connection, in each of the ways to be without one."""
    wrapper = brief.wrapper
    if request.param == "used":
        backend_pid(brief.alias)
    elif request.param == "in a block":
        with atomic(using=brief.alias):
            yield wrapper
        return
    elif request.param == "with autocommit off":
        wrapper.set_autocommit(False)
    yield wrapper
    if request.param == "with autocommit off":
        wrapper.set_autocommit(True)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_it_checks_nothing_out(brief: DryPool, operation: str) -> None:
    """A1: each of these works on a fresh wrapper though there is no connection left."""
    assert brief.wrapper.connection is None
    with brief.run_dry():
        OPERATIONS[operation](brief.wrapper)
    assert brief.wrapper.connection is None
    assert census(brief.alias) == (1, 0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_it_checks_nothing_out_after_use(brief: DryPool, operation: str) -> None:
    """A1: the same on a wrapper that had a connection and has given it back."""
    backend_pid(brief.alias)
    with brief.run_dry():
        OPERATIONS[operation](brief.wrapper)
    assert brief.wrapper.connection is None
    assert census(brief.alias) == (1, 0)


@pytest.mark.parametrize(
    "operation",
    [
        "nested atomic() entry",
        "get_autocommit()",
        "close_old_connections()",
        "repr()",
        "reading any attribute",
        "savepoint()",
    ],
)
def test_it_checks_nothing_out_whatever_the_state(somehow: Any, operation: str) -> None:
    """A1: also within a block that has run nothing yet, and with autocommit off."""
    dry = DryPool(somehow.alias)
    with dry.run_dry():
        try:
            OPERATIONS[operation](somehow)
        finally:
            # close_old_connections() closes a block, as in stock; what is left of it
            # must not ask for a connection either.
            assert somehow.connection is None


def test_reading_attributes_reads_the_pool_too(brief: DryPool) -> None:
    """A1: `pool`, where the base has it, is an attribute like any other."""
    assert "pool" in dir(brief.wrapper)
    with brief.run_dry():
        pool = brief.wrapper.pool
    assert (pool is None) is (not brief.alias.endswith("native"))


def test_a_pool_is_not_opened_by_what_checks_nothing_out(alias: str) -> None:
    """A1: neither does a wrapper whose pool does not exist yet make a connection."""
    wrapper: Any = type(connections[alias])(connections[alias].settings_dict, "unopened")
    wrapper.pool  # noqa: B018
    opened = wrapper._connection_pools.pop("unopened", None)
    assert (opened is None) is (alias != "native")
    assert opened is None or opened.closed
    wrapper.get_autocommit()
    wrapper.set_autocommit(False)
    wrapper.savepoint()
    wrapper.on_commit  # noqa: B018
    wrapper.set_autocommit(True)
    repr(wrapper)
    wrapper.close_if_unusable_or_obsolete()
    wrapper.close()
    assert "unopened" not in wrapper._connection_pools
    if alias == "own":
        assert "unopened" not in wrapper.pools
    if alias == "dj":
        from dj_db_conn_pool.core import pool_container

        assert "unopened" not in pool_container


@pytest.mark.parametrize("how", ["cursor", "chunked_cursor"])
def test_the_first_cursor_checks_a_connection_out(
    warm: str, wrapper: Any, how: str
) -> None:
    """A1: opening a cursor is what checks a connection out, before it runs anything."""
    assert census(warm).in_use == 0
    cursor = getattr(wrapper, how)()
    assert census(warm).in_use == 1
    assert wrapper.connection is not None
    cursor.close()
    assert census(warm).in_use == 0


def test_an_iterator_checks_nothing_out_before_its_first_row(warm: str) -> None:
    """A1: a query set's iterator is lazy, and nothing here makes it less so."""
    rows = Item.objects.using(warm).iterator()
    assert census(warm).in_use == 0
    assert list(rows) == []
    assert census(warm).in_use == 0


# ##### A2 #####

Program = Callable[[str, list[Any]], None]


def look(alias: str) -> tuple[Any, ...]:
    """Return what a program can see of its transaction, without a query."""
    wrapper = connections[alias]
    return (
        wrapper.get_autocommit(),
        wrapper.in_atomic_block,
        wrapper.needs_rollback,
        len(wrapper.savepoint_ids),
        [sid is None for sid in wrapper.savepoint_ids],
        wrapper.commit_on_exit,
        len(wrapper.run_on_commit),
        wrapper.get_rollback() if wrapper.in_atomic_block else None,
    )


@contextmanager
def noting(kind: type[Exception], seen: list[Any]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        seen.append(repr(error))


def empty_block(alias: str, seen: list[Any]) -> None:
    with atomic(using=alias):
        seen.append(look(alias))


def empty_blocks_in_each_other(alias: str, seen: list[Any]) -> None:
    with atomic(using=alias):
        with atomic(using=alias):
            with atomic(using=alias, savepoint=False):
                seen.append(look(alias))
            seen.append(look(alias))
        with atomic(using=alias):
            seen.append(look(alias))


def raising_block(alias: str, seen: list[Any]) -> None:
    with noting(Undo, seen), atomic(using=alias):
        transaction.on_commit(lambda: seen.append("never"), using=alias)
        raise Undo


def raising_inner_block(alias: str, seen: list[Any]) -> None:
    with atomic(using=alias):
        transaction.on_commit(lambda: seen.append("outer"), using=alias)
        with suppress(Undo), atomic(using=alias):
            transaction.on_commit(lambda: seen.append("inner"), using=alias)
            raise Undo
        seen.append(look(alias))
        transaction.on_commit(lambda: seen.append("outer again"), using=alias)


def raising_inner_block_without_savepoint(alias: str, seen: list[Any]) -> None:
    with atomic(using=alias):
        transaction.on_commit(lambda: seen.append("never"), using=alias)
        with suppress(Undo), atomic(using=alias, savepoint=False):
            raise Undo
        seen.append(look(alias))
        with atomic(using=alias):  # gets no savepoint, as a rollback is due
            seen.append(look(alias))


def callbacks_in_order(alias: str, seen: list[Any]) -> None:
    def register(name: str) -> None:
        transaction.on_commit(lambda: seen.append((name, look(alias))), using=alias)

    with atomic(using=alias):
        register("one")
        with atomic(using=alias):
            register("two")
        register("three")
    register("at once")


def callbacks_of_every_kind(alias: str, seen: list[Any]) -> None:
    def fail() -> None:
        seen.append("fails")
        raise Undo

    def open_a_block() -> None:
        with atomic(using=alias):
            transaction.on_commit(lambda: seen.append("from a callback"), using=alias)
            seen.append(look(alias))

    with noting(Undo, seen), atomic(using=alias):
        transaction.on_commit(fail, using=alias, robust=True)
        transaction.on_commit(open_a_block, using=alias)
        transaction.on_commit(fail, using=alias)
        transaction.on_commit(lambda: seen.append("never"), using=alias)


def durable_blocks(alias: str, seen: list[Any]) -> None:
    with atomic(using=alias, durable=True):
        transaction.on_commit(lambda: seen.append("durable"), using=alias)
    with atomic(using=alias):
        with pytest.raises(RuntimeError) as error, atomic(using=alias, durable=True):
            seen.append("never")
        seen.append(str(error.value))
        seen.append(look(alias))


def set_rollback(alias: str, seen: list[Any]) -> None:
    with atomic(using=alias):
        transaction.on_commit(lambda: seen.append("never"), using=alias)
        transaction.set_rollback(True, using=alias)
        seen.append(look(alias))
    with atomic(using=alias):
        transaction.on_commit(lambda: seen.append("outer"), using=alias)
        with atomic(using=alias):
            transaction.on_commit(lambda: seen.append("inner"), using=alias)
            transaction.set_rollback(True, using=alias)
        seen.append(look(alias))
    with pytest.raises(TransactionManagementError):
        transaction.set_rollback(True, using=alias)


def savepoints_by_hand(alias: str, seen: list[Any]) -> None:
    def register(name: str) -> None:
        transaction.on_commit(lambda: seen.append(name), using=alias)

    with atomic(using=alias):
        one = connections[alias].savepoint()
        register("after one")
        two = connections[alias].savepoint()
        register("after two")
        assert one is not None
        seen.append((type(one), one != two, look(alias)))
        transaction.savepoint_rollback(one, using=alias)
        transaction.savepoint_commit(one, using=alias)
        register("at the end")
    transaction.clean_savepoints(using=alias)
    seen.append(connections[alias].savepoint())  # None: there is no transaction


def refused_commit(alias: str, seen: list[Any]) -> None:
    with atomic(using=alias), atomic(using=alias):
        for forbidden in (transaction.commit, transaction.rollback):
            with noting(TransactionManagementError, seen):
                forbidden(using=alias)
        seen.append(look(alias))


def autocommit_off(alias: str, seen: list[Any]) -> None:
    transaction.set_autocommit(False, using=alias)
    seen.append(look(alias))
    with pytest.raises(TransactionManagementError):
        transaction.on_commit(lambda: seen.append("never"), using=alias)
    with atomic(using=alias):
        transaction.on_commit(lambda: seen.append("deferred"), using=alias)
        seen.append(look(alias))
        for forbidden in (transaction.commit, transaction.rollback):
            with pytest.raises(TransactionManagementError):
                forbidden(using=alias)
        with pytest.raises(TransactionManagementError):
            transaction.set_autocommit(True, using=alias)
    seen.append(look(alias))
    transaction.commit(using=alias)
    seen.append("committed")
    transaction.set_autocommit(True, using=alias)
    seen.append(look(alias))


def a_decorated_function(alias: str, seen: list[Any]) -> None:
    @atomic(using=alias)
    def run(depth: int) -> None:
        seen.append(look(alias))
        if depth:
            run(depth - 1)

    run(2)


PROGRAMS: dict[str, Program] = {
    program.__name__: program
    for program in (
        empty_block,
        empty_blocks_in_each_other,
        raising_block,
        raising_inner_block,
        raising_inner_block_without_savepoint,
        callbacks_in_order,
        callbacks_of_every_kind,
        durable_blocks,
        set_rollback,
        savepoints_by_hand,
        refused_commit,
        autocommit_off,
        a_decorated_function,
    )
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_block_without_a_statement_is_as_stock_and_has_no_connection(
    alias: str, brief: DryPool, program: str
) -> None:
    """A2: nothing is checked out, for there is nothing left; all else is as stock."""
    stock: list[Any] = []
    PROGRAMS[program](STOCK_OF[alias], stock)
    ours: list[Any] = []
    with brief.run_dry():
        PROGRAMS[program](brief.alias, ours)
        ours.append(look(brief.alias))
    stock.append(look(STOCK_OF[alias]))
    connections[STOCK_OF[alias]].close()
    assert ours == stock


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_block_without_a_statement_sends_nothing(
    warm: str, traffic: Traffic, observer: Any, program: str
) -> None:
    """A2: the server sees no query, no transaction and no change of any kind."""
    pids = list({backend_pid(warm) for _ in range(3)})
    activity = (
        "SELECT pid, state, query, query_start, xact_start, state_change "
        "FROM pg_stat_activity WHERE pid = ANY(%s) ORDER BY pid"
    )
    wait_until(
        lambda: all(row[1] == "idle" for row in observer.execute(activity, [pids])),
        "the server has noted the end of what ran before",
    )
    before = observer.execute(activity, [pids]).fetchall()
    checkouts = traffic.checkouts

    PROGRAMS[program](warm, [])

    assert traffic.checkouts == checkouts
    assert observer.execute(activity, [pids]).fetchall() == before


@pytest.fixture
def _atomic_requests(brief: DryPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings[brief.alias], "ATOMIC_REQUESTS", True)


def respond(view: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Run a view as Django's request handler does with ATOMIC_REQUESTS."""
    return BaseHandler().make_view_atomic(view)(RequestFactory().get("/"))


@pytest.mark.usefixtures("_atomic_requests")
def test_a_request_without_a_query_has_no_connection(brief: DryPool) -> None:
    """A2: so with ATOMIC_REQUESTS a view that needs no database does not wait for it."""
    calls = []

    def view(request: HttpRequest) -> HttpResponse:
        assert connections[brief.alias].in_atomic_block
        transaction.on_commit(lambda: calls.append(1), using=brief.alias)
        return HttpResponse("fine")

    with brief.run_dry():
        assert respond(view).content == b"fine"
    assert calls == [1]


@pytest.mark.usefixtures("_atomic_requests")
def test_a_request_with_a_query_has_one_from_its_first_query(
    brief: DryPool, observer: Any
) -> None:
    """A2: ATOMIC_REQUESTS still is one transaction, committed or rolled back."""

    def view(request: HttpRequest) -> HttpResponse:
        assert census(brief.alias).in_use == 0
        add(brief.alias, "one")
        assert census(brief.alias).in_use == 1
        add(brief.alias, "two")
        assert committed(observer) == []
        return HttpResponse()

    def failing_view(request: HttpRequest) -> HttpResponse:
        add(brief.alias, "three")
        raise Undo

    respond(view)
    assert census(brief.alias).in_use == 0
    assert committed(observer) == ["one", "two"]
    with pytest.raises(Undo):
        respond(failing_view)
    assert census(brief.alias).in_use == 0
    assert committed(observer) == ["one", "two"]


# ##### A3 #####


@pytest.fixture(params=["fresh", "used"])
def either(request: pytest.FixtureRequest, brief: DryPool) -> str:
    """An alias whose wrapper never had a connection, or has given it back."""
    if request.param == "used":
        backend_pid(brief.alias)
    assert brief.wrapper.connection is None
    return brief.alias


def test_the_first_checkout_in_a_block_keeps_the_blocks(either: str) -> None:
    """A3: blocks, savepoints and callbacks are what they were before the checkout."""
    wrapper: Any = connections[either]
    with atomic(using=either):
        transaction.on_commit(lambda: None, using=either)
        with atomic(using=either), atomic(using=either, savepoint=False):
            transaction.on_commit(lambda: None, using=either)
            before = (
                list(wrapper.atomic_blocks),
                list(wrapper.savepoint_ids),
                list(wrapper.run_on_commit),
                wrapper.savepoint_state,
                look(either),
            )
            assert wrapper.connection is None
            backend_pid(either)
            assert wrapper.connection is not None
            assert before == (
                wrapper.atomic_blocks,
                wrapper.savepoint_ids,
                wrapper.run_on_commit,
                wrapper.savepoint_state,
                look(either),
            )
            assert in_transaction(wrapper)
            assert census(either).in_use == 1
    assert census(either).in_use == 0


def test_the_first_checkout_in_a_block_keeps_needs_rollback(
    either: str, observer: Any
) -> None:
    """A3: a rollback that is due stays due, so the statement is refused as by stock."""
    with atomic(using=either):
        transaction.set_rollback(True, using=either)
        with pytest.raises(TransactionManagementError):
            add(either, "refused")
        assert transaction.get_rollback(using=either)
        transaction.set_rollback(False, using=either)
        add(either, "kept")
    with atomic(using=either):
        transaction.set_rollback(True, using=either)
        with pytest.raises(TransactionManagementError):
            add(either, "refused")
    assert committed(observer) == ["kept"]
    assert census(either).in_use == 0


def test_what_a_late_block_writes_is_committed_at_its_end(
    either: str, observer: Any
) -> None:
    """A3: a checkout inside a block joins the block's transaction."""
    with atomic(using=either):
        add(either, "one")
        assert committed(observer) == []
    assert committed(observer) == ["one"]


def test_what_a_late_block_writes_is_rolled_back_with_it(
    either: str, observer: Any
) -> None:
    """A3: and it is undone with the block."""
    with suppress(Undo), atomic(using=either):
        add(either, "one")
        raise Undo
    assert committed(observer) == []


@pytest.mark.parametrize("raising", [(), (0,), (1,), (2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("first_write", [0, 1, 2])
def test_each_level_is_kept_or_undone_alone(
    either: str, observer: Any, raising: tuple[int, ...], first_write: int
) -> None:
    """A3: the savepoints of levels entered before the checkout are there after it."""
    calls: list[str] = []

    def write(level: int, when: str) -> None:
        name = f"{when} {level}"
        if level >= first_write or when == "after":
            add(either, name)
        transaction.on_commit(lambda: calls.append(name), using=either)

    def run(level: int) -> None:
        with suppress(Undo), atomic(using=either):
            write(level, "before")
            if level < 2:
                run(level + 1)
            write(level, "after")
            if level in raising:
                raise Undo

    run(0)
    kept = range(min(raising, default=3))
    expected = [f"before {n}" for n in kept] + [f"after {n}" for n in reversed(kept)]
    if raising and min(raising) > 0:
        # An undone level undoes those within it; those around it are kept.
        assert calls == expected
    elif raising:
        assert calls == []
        expected = []
    assert calls == expected
    written = [name for name in expected if name[0] == "a" or int(name[-1]) >= first_write]
    assert committed(observer) == written
    assert census(either).in_use == 0


def test_a_savepoint_made_by_hand_before_the_checkout_is_there_after_it(
    either: str, observer: Any
) -> None:
    """A3: `savepoint_rollback()` undoes what came after, whenever it was sent."""
    with atomic(using=either):
        first = connections[either].savepoint()
        second = connections[either].savepoint()
        assert first is not None
        assert second is not None
        add(either, "undone")
        transaction.savepoint_rollback(second, using=either)
        add(either, "kept for now")
        transaction.savepoint_commit(second, using=either)
        assert Item.objects.using(either).count() == 1
        transaction.savepoint_rollback(first, using=either)
        assert Item.objects.using(either).count() == 0
        add(either, "kept")
    assert committed(observer) == ["kept"]


def test_whoever_watches_cursors_sees_savepoints_that_are_sent_late(
    either: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3: tools replace `execute()` of Django's cursors, or make cursors of their own."""
    seen: list[str] = []
    execute = CursorWrapper.execute

    def watched(self: Any, sql: Any, params: Any = None) -> Any:
        seen.append(sql.split(" ")[0])
        return execute(self, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", watched)
    wrapper = connections[either]
    with CaptureQueriesContext(wrapper) as logged:
        wrapper.close()
        with atomic(using=either), atomic(using=either):
            wrapper.savepoint()
            add(either, "one")
    sent = ["SAVEPOINT", "SAVEPOINT", "INSERT", "RELEASE"]
    assert seen == sent
    # Each is logged once, when it was asked for.
    texts = [each["sql"].split(" ")[0] for each in logged]
    assert texts == ["BEGIN", *sent, "COMMIT"]


def test_a_broken_block_checks_out_all_the_same(either: str) -> None:
    """A3: it is the statement that is refused, as in stock, not the cursor."""
    with suppress(Undo), atomic(using=either), atomic(using=either):
        transaction.set_rollback(True, using=either)
        refused = pytest.raises(TransactionManagementError)
        with connections[either].cursor() as cursor, refused:
            cursor.execute("SELECT 1")
        assert transaction.get_rollback(using=either)
        raise Undo


def test_a_savepoint_that_ended_before_the_checkout_is_not_sent(
    either: str, observer: Any
) -> None:
    """A3: inner blocks that ran nothing leave nothing behind for the server."""
    sent: list[str] = []

    def listen(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        sent.append(sql)
        return execute(sql, params, many, context)

    with connections[either].execute_wrapper(listen), atomic(using=either):
        with atomic(using=either):
            pass
        with suppress(Undo), atomic(using=either):
            raise Undo
        add(either, "one")
    assert sent == ["INSERT INTO item (name) VALUES (%s)"]
    assert committed(observer) == ["one"]


def test_a_refused_commit_keeps_the_savepoints_that_wait(
    either: str, observer: Any
) -> None:
    """A3: `commit()` and `rollback()` in a block raise, as in stock, and do no more."""
    with atomic(using=either):
        with suppress(Undo), atomic(using=either):
            for forbidden in (transaction.commit, transaction.rollback):
                with pytest.raises(TransactionManagementError):
                    forbidden(using=either)
            add(either, "undone")
            raise Undo
        add(either, "kept")
    assert committed(observer) == ["kept"]


def test_a_failed_statement_in_an_inner_block_undoes_only_that_block(
    either: str, observer: Any
) -> None:
    """A3: the server really has the savepoint, so a broken transaction is repaired."""
    with atomic(using=either):
        with pytest.raises(IntegrityError), atomic(using=either):
            Item.objects.using(either).bulk_create([Item(name="twice"), Item(name="twice")])
        add(either, "once")
    assert committed(observer) == ["once"]


def test_autocommit_off_survives_the_first_checkout(either: str, observer: Any) -> None:
    """A3: the mode that was set without a connection is the mode of the connection."""
    wrapper: Any = connections[either]
    wrapper.set_autocommit(False)
    assert wrapper.connection is None
    add(either, "undone")
    assert wrapper.get_autocommit() is False
    assert in_transaction(wrapper)
    wrapper.rollback()
    with suppress(Undo), atomic(using=either):
        add(either, "undone")
        raise Undo
    with atomic(using=either):
        add(either, "kept")
    assert committed(observer) == []
    wrapper.commit()
    assert committed(observer) == ["kept"]
    wrapper.set_autocommit(True)
    assert census(either).in_use == 0


def test_the_set_up_of_a_late_connection_is_no_part_of_the_transaction(
    either: str, observer: Any
) -> None:
    """A3: what a receiver of connection_created does is done, as before a stock block."""
    wrapper: Any = connections[either]
    wrapper.close()  # so that the next connection is announced
    seen: list[Any] = []

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection is wrapper:
            seen.append((connection.in_atomic_block, connection.get_autocommit()))
            add(either, "by the receiver")
            with atomic(using=either):
                add(either, "by the receiver's block")

    connection_created.connect(receive)
    try:
        with suppress(Undo), atomic(using=either), atomic(using=either):
            add(either, "by the block")
            assert len(wrapper.atomic_blocks) == 2
            assert len(wrapper.savepoint_ids) == 1
            raise Undo
    finally:
        connection_created.disconnect(receive)
    assert seen == [(False, True)]
    assert committed(observer) == ["by the receiver", "by the receiver's block"]


def test_each_late_block_has_its_own_transaction(either: str, observer: Any) -> None:
    """A3: block after block on one wrapper, with nothing left over from the last."""
    for number in range(3):
        with suppress(Undo), atomic(using=either), atomic(using=either):
            add(either, f"kept {number}")
            if number == 1:
                raise Undo
        assert look(either)[:4] == (True, False, False, 0)
        assert census(either).in_use == 0
    assert committed(observer) == ["kept 0", "kept 2"]


# ##### A4 #####


def test_an_exhausted_pool_fails_the_statement_and_not_the_block(brief: DryPool) -> None:
    """A4: `atomic()` is entered; it is the statement that raises OperationalError."""
    with brief.run_dry(), atomic(using=brief.alias):
        with pytest.raises(OperationalError):
            Item.objects.using(brief.alias).count()
        assert brief.wrapper.connection is None
        transaction.set_rollback(True, using=brief.alias)
    assert look(brief.alias) == (True, False, False, 0, [], True, 0, None)


def test_an_exhausted_pool_fails_a_statement_outside_a_block(
    brief: DryPool, observer: Any
) -> None:
    """A4: without a block as well, and the next statement is fine again."""
    for _ in range(2):
        with brief.run_dry(), pytest.raises(OperationalError):
            brief.wrapper.cursor()
        assert brief.wrapper.connection is None
        backend_pid(brief.alias)
    add(brief.alias, "one")
    assert committed(observer) == ["one"]


@pytest.mark.parametrize(
    "how", ["cursor", "chunked_cursor", "ensure_connection", "connect"]
)
def test_every_way_to_check_out_raises_djangos_error(brief: DryPool, how: str) -> None:
    """A4: whoever asks for the connection gets Django's class, not the pool's."""
    with brief.run_dry(), pytest.raises(OperationalError):
        getattr(brief.wrapper, how)()
    assert brief.wrapper.connection is None
    assert backend_pid(brief.alias)


def test_a_block_that_lost_a_statement_is_rolled_back_silently(
    brief: DryPool, observer: Any
) -> None:
    """A4: the block ends as after a failed statement, though a connection came free."""
    calls = []
    with atomic(using=brief.alias):
        transaction.on_commit(lambda: calls.append(1), using=brief.alias)
        with brief.run_dry(), pytest.raises(OperationalError):
            add(brief.alias, "lost")
        assert transaction.get_rollback(using=brief.alias)
        with pytest.raises(TransactionManagementError) as error:
            add(brief.alias, "would be half of it")
        assert isinstance(error.value.__cause__, OperationalError)
    assert calls == []
    assert committed(observer) == []
    assert look(brief.alias) == (True, False, False, 0, [], True, 0, None)
    assert census(brief.alias).in_use == 0
    add(brief.alias, "usable")
    assert committed(observer) == ["usable"]


def test_the_error_leaves_the_block_as_it_is(brief: DryPool, observer: Any) -> None:
    """A4: when nobody catches it, what comes out of the block is that very error."""
    calls = []

    def lose() -> None:
        with atomic(using=brief.alias):
            transaction.on_commit(lambda: calls.append(1), using=brief.alias)
            add(brief.alias, "lost")

    with brief.run_dry():
        with pytest.raises(OperationalError):
            lose()
        assert look(brief.alias) == (True, False, False, 0, [], True, 0, None)
    assert calls == []
    with atomic(using=brief.alias):
        add(brief.alias, "usable")
    assert committed(observer) == ["usable"]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_only_the_inner_block_that_lost_a_statement_is_undone(
    brief: DryPool, observer: Any, depth: int
) -> None:
    """A4: around it the transaction goes on, with the connection that came free."""
    calls: list[str] = []

    def nest(level: int) -> None:
        if not level:
            add(brief.alias, "lost")
            return
        with atomic(using=brief.alias):
            transaction.on_commit(lambda: calls.append("lost"), using=brief.alias)
            nest(level - 1)

    with atomic(using=brief.alias):
        transaction.on_commit(lambda: calls.append("kept"), using=brief.alias)
        with brief.run_dry(), pytest.raises(OperationalError):
            nest(depth)
        assert look(brief.alias)[:4] == (False, True, False, 0)
        add(brief.alias, "kept")
        with atomic(using=brief.alias):
            add(brief.alias, "kept too")
    assert calls == ["kept"]
    assert committed(observer) == ["kept", "kept too"]


def test_without_a_savepoint_the_outer_block_is_undone_too(
    brief: DryPool, observer: Any
) -> None:
    """A4: as in stock, `atomic(savepoint=False)` marks the block around it."""
    with atomic(using=brief.alias):
        with (
            brief.run_dry(),
            pytest.raises(OperationalError),
            atomic(using=brief.alias, savepoint=False),
        ):
            add(brief.alias, "lost")
        assert transaction.get_rollback(using=brief.alias)
        with pytest.raises(TransactionManagementError):
            add(brief.alias, "would be half of it")
    assert committed(observer) == []
    assert backend_pid(brief.alias)


def test_with_autocommit_off_the_statement_can_be_tried_again(
    brief: DryPool, observer: Any
) -> None:
    """A4: outside of blocks there is no block to undo; the mode is kept."""
    wrapper = brief.wrapper
    wrapper.set_autocommit(False)
    with brief.run_dry(), pytest.raises(OperationalError):
        add(brief.alias, "lost")
    assert wrapper.get_autocommit() is False
    add(brief.alias, "kept")
    assert committed(observer) == []
    wrapper.commit()
    assert committed(observer) == ["kept"]
    wrapper.set_autocommit(True)


def test_a_block_with_autocommit_off_is_undone_too(brief: DryPool, observer: Any) -> None:
    """A4: such a block has a savepoint of its own, and no commit at its end."""
    wrapper = brief.wrapper
    wrapper.set_autocommit(False)
    with brief.run_dry(), pytest.raises(OperationalError), atomic(using=brief.alias):
        add(brief.alias, "lost")
    assert look(brief.alias)[:4] == (False, False, False, 0)
    with atomic(using=brief.alias):
        add(brief.alias, "kept")
    wrapper.commit()
    wrapper.set_autocommit(True)
    assert committed(observer) == ["kept"]
    assert census(brief.alias).in_use == 0


def test_a_pin_that_gets_no_connection_pins_nothing(brief: DryPool) -> None:
    """A4: an explicit checkout that fails leaves no hold behind."""
    from django_pg_real_pool import pin_connection

    with (
        brief.run_dry(),
        pytest.raises(OperationalError),
        pin_connection(brief.alias),
    ):
        pass
    backend_pid(brief.alias)
    assert census(brief.alias).in_use == 0


# ##### A5 #####


def test_a_cursor_from_before_the_block_belongs_to_the_block(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """A5: with a lease at its entry, the block switches autocommit at its entry."""
    with wrapper.cursor() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES ('before')")
        with suppress(Undo), atomic(using=warm):
            assert physical(wrapper).autocommit is False
            cursor.execute("INSERT INTO item (name) VALUES ('undone')")
            assert committed(observer) == ["before"]
            raise Undo
        assert physical(wrapper).autocommit is True
        with atomic(using=warm):
            cursor.execute("INSERT INTO item (name) VALUES ('kept')")
            assert committed(observer) == ["before"]
        assert committed(observer) == ["before", "kept"]
        cursor.execute("INSERT INTO item (name) VALUES ('after')")
        assert committed(observer) == ["before", "kept", "after"]
    assert census(warm).in_use == 0


def test_a_pinned_connection_is_switched_at_the_entry_of_the_block(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """A5: the same for a pin, also where the driver's connection is used directly."""
    from django_pg_real_pool import pin_connection

    with pin_connection(warm):
        with suppress(Undo), atomic(using=warm):
            assert physical(wrapper).autocommit is False
            physical(wrapper).execute("INSERT INTO item (name) VALUES ('undone')")
            raise Undo
        with atomic(using=warm):
            physical(wrapper).execute("INSERT INTO item (name) VALUES ('kept')")
            assert committed(observer) == []
        assert physical(wrapper).autocommit is True
    assert committed(observer) == ["kept"]


def test_an_explicit_connection_is_switched_at_the_entry_of_the_block(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """A5: the same after `ensure_connection()`."""
    wrapper.ensure_connection()
    with atomic(using=warm):
        assert physical(wrapper).autocommit is False
        add(warm, "kept")
        assert committed(observer) == []
    assert committed(observer) == ["kept"]
    assert census(warm).in_use == 0


def test_nested_blocks_send_their_savepoint_at_once_where_there_is_a_lease(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """A5: a statement through an older cursor is undone with the inner block alone."""
    with wrapper.cursor() as cursor, atomic(using=warm):
        cursor.execute("INSERT INTO item (name) VALUES ('kept')")
        with suppress(Undo), atomic(using=warm):
            cursor.execute("INSERT INTO item (name) VALUES ('undone')")
            raise Undo
    assert committed(observer) == ["kept"]


def test_a_cursor_from_before_belongs_to_the_mode_set_since(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """A5: `set_autocommit()` too is carried out at once where there is a lease."""
    with wrapper.cursor() as cursor:
        wrapper.set_autocommit(False)
        assert physical(wrapper).autocommit is False
        cursor.execute("INSERT INTO item (name) VALUES ('undone')")
        wrapper.rollback()
        cursor.execute("INSERT INTO item (name) VALUES ('kept')")
        wrapper.commit()
        wrapper.set_autocommit(True)
        assert physical(wrapper).autocommit is True
    assert committed(observer) == ["kept"]
    assert census(warm).in_use == 0


def test_a_block_with_a_lease_keeps_it_for_its_transaction(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """A5: the block's transaction outlives the cursor that was there before it."""
    cursor = wrapper.cursor()
    with atomic(using=warm):
        cursor.execute("INSERT INTO item (name) VALUES ('one')")
        cursor.close()
        assert census(warm).in_use == 1
        add(warm, "two")
        assert committed(observer) == []
    assert census(warm).in_use == 0
    assert committed(observer) == ["one", "two"]


def test_a_block_whose_lease_ends_unused_gets_another(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """A5: where the older cursor ran nothing in the block, its end is the lease's."""
    cursor = wrapper.cursor()
    with atomic(using=warm):
        cursor.close()
        assert census(warm).in_use == 0
        add(warm, "one")
        assert census(warm).in_use == 1
        assert committed(observer) == []
    assert census(warm).in_use == 0
    assert committed(observer) == ["one"]
