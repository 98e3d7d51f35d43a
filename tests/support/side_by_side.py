"""Runs a program on an engine and on its stock twin, and shows all that may differ."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any

import psycopg
from django.db import connections, transaction

Program = Callable[[Any], Any]

#: What a neighbour's backend sends by itself whenever it makes a cursor: for stock it also
#: makes one where nothing is sent by ours.
CHATTER = re.compile(os.environ.get("REAL_POOL_CHATTER", r"(?!)"))


@contextmanager
def rolled_back(db: Any, **options: Any) -> Iterator[None]:
    """Run a block of `db` that ends with an exception of the user's."""
    with suppress(LookupError), transaction.atomic(using=db.alias, **options):
        yield
        raise LookupError


@dataclass(frozen=True)
class Observed:
    """What a user, and everybody else, can see of a program that ran on one alias."""

    result: Any
    error: str | None
    queries: list[str]
    committed: list[tuple[Any, ...]]
    autocommit: bool
    in_atomic_block: bool
    needs_rollback: bool
    callbacks_left: int


def observe(alias: str, program: Program) -> Observed:
    """Run `program(wrapper)` on a fresh session of `alias`, with queries logged."""
    with psycopg.connect(autocommit=True) as observer:
        observer.execute("SET lock_timeout = '5s'")  # if a transaction was left open
        observer.execute("TRUNCATE item RESTART IDENTITY")
        wrapper: Any = connections[alias]
        wrapper.ensure_connection()
        wrapper.close()
        wrapper.clean_savepoints()
        wrapper._named_cursor_idx = 0
        wrapper.rollback_exc = None  # which stock keeps for ever
        wrapper.queries_log.clear()
        wrapper.force_debug_cursor = True
        result, error = None, None
        try:
            result = program(wrapper)
        except Exception as raised:  # noqa: BLE001 - whatever it is, it is compared
            error = describe(raised)
        finally:
            wrapper.force_debug_cursor = False
        try:
            return Observed(
                result=result,
                error=error,
                queries=[
                    same_for_all(str(query["sql"]))
                    for query in wrapper.queries
                    if not CHATTER.match(str(query["sql"]))
                ],
                committed=observer.execute(
                    "SELECT id, name FROM item ORDER BY id"
                ).fetchall(),
                autocommit=wrapper.autocommit,
                in_atomic_block=wrapper.in_atomic_block,
                needs_rollback=wrapper.needs_rollback,
                callbacks_left=len(wrapper.run_on_commit),
            )
        finally:
            wrapper.in_atomic_block = wrapper.closed_in_transaction = False
            wrapper.close()
            wrapper.queries_log.clear()


def assert_same(ours: Observed, stock: Observed) -> None:
    """Fail with the first thing that an engine did otherwise than its stock."""
    for field in fields(Observed):
        one, other = getattr(ours, field.name), getattr(stock, field.name)
        if field.name == "queries" and one != other:
            pairs = enumerate(zip_longest(one, other))
            number, pair = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
            raise AssertionError(f"query {number}: {pair[0]!r}, in stock {pair[1]!r}")
        assert one == other, f"{field.name}: {one!r}, in stock {other!r}"


def describe(error: BaseException) -> str:
    """Return the class of an error, its text, and the classes that it comes from."""
    chain = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(f"{type(cause).__module__}.{type(cause).__qualname__}")
        cause = cause.__cause__
    return f"{' from '.join(chain)}: {same_for_all(str(error))}"


def same_for_all(text: str) -> str:
    """Replace what is different in each run: savepoints, addresses, times, aliases."""
    text = re.sub(r"s\d+_x(\d+)", r"s_x\1", text)
    text = re.sub(r"at 0x[0-9a-f]+", "at 0x", text)
    text = re.sub(r"thread id \d+", "thread id", text)
    text = re.sub(r"'\d{4}-\d\d-\d\d[^']*'::timestamptz", "'now'::timestamptz", text)
    text = re.sub(r"\(\d\.\d{3}s\)", "(0.000s)", text)
    return text.replace("stock_", "")
