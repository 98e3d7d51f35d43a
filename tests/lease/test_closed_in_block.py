"""D1, D3: what stock answers after `close()` in a block, and to an early `commit()`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import Error, connections
from django.db.transaction import atomic
from helpers import census, wait_until
from items import Item
from leases import committed
from settings import MANUAL_OF, STOCK_OF
from side_by_side import Program, assert_same, observe, same_for_all
from traffic import warm_up


def said(question: Callable[[], Any]) -> Any:
    """Return the answer, or the class of the error there was instead."""
    try:
        return question()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return type(error).__name__


def insert(db: Any) -> Any:
    return Item.objects.using(db.alias).create(name="one").name


def execute(db: Any) -> Any:
    with db.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()


def iterate(db: Any) -> Any:
    return list(Item.objects.using(db.alias).iterator())


#: What needs a connection, so that it must be refused.
STATEMENTS: dict[str, Callable[[Any], Any]] = {
    "a cursor": lambda db: db.cursor(),
    "a server-side cursor": lambda db: db.chunked_cursor(),
    "a statement": execute,
    "the ORM": insert,
    "an iterator": iterate,
    "an inner block": lambda db: atomic(using=db.alias)(execute)(db),
    "a savepoint": lambda db: db.savepoint(),
}


def refusals(db: Any) -> dict[str, Any]:
    return {name: said(partial(ask, db)) for name, ask in STATEMENTS.items()}


def answers(db: Any) -> dict[str, Any]:
    """Return what a wrapper answers to what it can be asked without a statement."""
    return {
        "get_autocommit()": said(db.get_autocommit),
        "get_rollback()": said(db.get_rollback),
        "set_autocommit()": said(lambda: db.set_autocommit(True)),
        "commit()": said(db.commit),
        "rollback()": said(db.rollback),
        "close()": said(db.close),
        "in_atomic_block": db.in_atomic_block,
        "closed_in_transaction": db.closed_in_transaction,
        "needs_rollback": db.needs_rollback,
    }


def after_a_statement(db: Any) -> Any:
    with atomic(using=db.alias):
        insert(db)
        db.close()
        return answers(db)


def before_the_first_statement(db: Any) -> Any:
    db.ensure_connection()  # stock has one by then anyway
    with atomic(using=db.alias):
        db.close()
        return answers(db)


def in_an_inner_block(db: Any) -> Any:
    with atomic(using=db.alias):
        insert(db)
        with atomic(using=db.alias):
            execute(db)
            db.close()
            return answers(db)


def twice(db: Any) -> Any:
    with atomic(using=db.alias):
        insert(db)
        db.close()
        db.close()
        return answers(db)


def with_a_callback(db: Any) -> Any:
    called: list[str] = []
    with atomic(using=db.alias):
        db.on_commit(lambda: called.append("before"))
        insert(db)
        db.close()
        seen = said(lambda: db.on_commit(lambda: called.append("after")))
    return called, seen


def and_after_the_block(db: Any) -> Any:
    seen = said(lambda: atomic(using=db.alias)(lambda: (insert(db), db.close()))())
    return seen, db.get_autocommit(), insert(db), execute(db)


def and_after_an_inner_block(db: Any) -> Any:
    def outer() -> Any:
        insert(db)
        inner = said(lambda: atomic(using=db.alias)(lambda: db.close())())
        return inner, db.in_atomic_block, answers(db)

    seen = said(atomic(using=db.alias)(outer))
    return seen, db.get_autocommit(), insert(db), execute(db)


CLOSED_IN_A_BLOCK: list[Program] = [
    after_a_statement,
    before_the_first_statement,
    in_an_inner_block,
    twice,
    with_a_callback,
    and_after_the_block,
    and_after_an_inner_block,
]


def commit_first(db: Any) -> Any:
    return said(db.commit), db.get_autocommit(), insert(db), said(db.commit)


def rollback_first(db: Any) -> Any:
    return said(db.rollback), db.get_autocommit(), insert(db), said(db.commit)


def commit_twice_first(db: Any) -> Any:
    return said(db.commit), said(db.commit), insert(db), said(db.rollback)


def commit_after_close(db: Any) -> Any:
    seen = insert(db), said(db.commit)
    db.close()
    return seen, said(db.commit), execute(db), said(db.commit)


def commit_after_switching(db: Any) -> Any:
    db.set_autocommit(True)
    first = said(db.commit)
    db.set_autocommit(False)
    return first, said(db.commit), insert(db), said(db.commit)


def commit_before_a_block(db: Any) -> Any:
    called: list[str] = []
    seen = said(db.commit)
    with atomic(using=db.alias):
        db.on_commit(lambda: called.append("one"))
        insert(db)
    early = list(called)
    db.commit()
    db.set_autocommit(True)
    return seen, early, called, db.get_autocommit(), execute(db)


def commit_before_an_empty_block(db: Any) -> Any:
    called: list[str] = []
    seen = said(db.commit)
    with atomic(using=db.alias):
        db.on_commit(lambda: called.append("one"))
    early = list(called)
    return seen, early, said(db.commit), said(lambda: db.set_autocommit(True)), called


def commit_before_a_block_that_sql_commits(db: Any) -> Any:
    called: list[str] = []
    db.commit()
    with atomic(using=db.alias):
        db.on_commit(lambda: called.append("one"))
        insert(db)
    with db.cursor() as cursor:
        cursor.execute("COMMIT")
    db.set_autocommit(True)  # runs what the first commit() has asked for
    return called, db.run_commit_hooks_on_set_autocommit_on


def commit_and_look(db: Any) -> Any:
    db.commit()
    seen = [db.run_commit_hooks_on_set_autocommit_on]
    for statement in (db.get_autocommit, lambda: execute(db), db.rollback):
        statement()
        seen.append(db.run_commit_hooks_on_set_autocommit_on)
    return seen


def commit_and_ask(db: Any) -> Any:
    seen = said(db.commit)
    called = said(lambda: db.on_commit(lambda: None))
    return seen, called, answers(db)


def savepoint_first(db: Any) -> Any:
    sid = db.savepoint()
    seen = insert(db)
    db.savepoint_rollback(sid)
    return seen, said(db.commit)


COMMIT_FIRST: list[Program] = [
    commit_first,
    rollback_first,
    commit_twice_first,
    commit_after_close,
    commit_after_switching,
    commit_before_a_block,
    commit_before_an_empty_block,
    commit_before_a_block_that_sql_commits,
    commit_and_look,
    commit_and_ask,
    savepoint_first,
]


@pytest.mark.parametrize("program", CLOSED_IN_A_BLOCK)
def test_a_wrapper_that_was_closed_in_a_block_answers_as_stock(
    alias: str, program: Program
) -> None:
    """D1: False for get_autocommit(), the same errors, and the same end of the block."""
    warm_up(alias)
    assert_same(observe(alias, program), observe(STOCK_OF[alias], program))
    wait_until(lambda: census(alias).in_use == 0, "nothing is in use")


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_wrapper_that_was_closed_in_a_block_refuses_statements(
    alias: str, wrapper: Any, observer: Any, statement: str
) -> None:
    """D1, F7: with an error of Django's, and never on another connection."""
    warm_up(alias)
    with atomic(using=alias):
        insert(wrapper)
        wrapper.close()
        for _ in range(2):
            with pytest.raises(Error):
                STATEMENTS[statement](wrapper)
            assert census(alias).in_use == 0
    assert committed(observer) == []
    assert execute(wrapper) == (1,)


def test_native_statements_are_refused_with_stocks_errors() -> None:
    """D1: other pools' stock goes on with what it has given back, or fails in an assert."""

    def program(db: Any) -> Any:
        with atomic(using=db.alias):
            insert(db)
            db.close()
            return refusals(db), answers(db), said(db.is_usable)

    assert_same(observe("native", program), observe("stock_native", program))


@pytest.mark.parametrize("program", COMMIT_FIRST)
def test_commit_as_the_first_call_is_as_in_stock(alias: str, program: Program) -> None:
    """D3: with `AUTOCOMMIT: False`, where there is no transaction yet to be ended."""
    manual = MANUAL_OF[alias]
    assert_same(observe(manual, program), observe(f"stock_{manual}", program))
    wait_until(lambda: census(manual).in_use == 0, "nothing is in use")


@pytest.mark.parametrize("program", COMMIT_FIRST)
def test_commit_as_the_first_call_of_a_wrapper_is_as_in_stock(
    alias: str, program: Program
) -> None:
    """D3: the same on a wrapper that has never had a connection."""
    manual = MANUAL_OF[alias]

    def on_a_fresh_wrapper(db: Any) -> Any:
        fresh = type(db)(db.settings_dict, db.alias)
        fresh.force_debug_cursor = True
        connections[db.alias] = fresh
        try:
            result = program(fresh)
            return result, [same_for_all(str(query["sql"])) for query in fresh.queries]
        finally:
            fresh.close()
            connections[db.alias] = db

    assert_same(
        observe(manual, on_a_fresh_wrapper),
        observe(f"stock_{manual}", on_a_fresh_wrapper),
    )
    wait_until(lambda: census(manual).in_use == 0, "nothing is in use")
