"""D1: what somebody has put in the place of a method is called, as on stock.

Tools that trace, count or forbid do so at any time, on a class or on one wrapper. The
quickest way of a query goes past many methods, if they are as their authors wrote them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from django.conf import settings
from django.db import ProgrammingError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.transaction import atomic
from django.test.utils import CaptureQueriesContext
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend


class Undecorated(DatabaseWrapper):
    def create_cursor(self, name: str | None = None) -> Any:
        return super().create_cursor(name)


OF_CLASSES = [
    (BaseDatabaseWrapper, "cursor"),
    (BaseDatabaseWrapper, "make_cursor"),
    (BaseDatabaseWrapper, "_prepare_cursor"),
    (BaseDatabaseWrapper, "commit"),
    (DatabaseWrapper, "create_cursor"),
    (CursorWrapper, "execute"),
    (CursorWrapper, "_execute_with_wrappers"),
    (CursorWrapper, "_execute"),
]


def calls_on(alias: str, owner: Any, name: str) -> list[str]:
    """Return the calls of a method, replaced on a class or on a wrapper, in a use."""
    calls: list[str] = []
    original = getattr(owner, name)

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if isinstance(owner, type):
            patch.setattr(owner, name, counted)
        else:  # so that nothing is left on it
            patch.setitem(vars(owner), name, counted)
        use(alias)
    return calls


def use(alias: str) -> None:
    """Run a query, a block and an empty one."""
    for in_block in (False, True):
        with connections[alias].cursor() as cursor:
            if not in_block:
                cursor.execute("SELECT 1")
                continue
        with atomic(using=alias), connections[alias].cursor() as cursor:
            cursor.execute("SELECT %s", [1])
            assert cursor.fetchall() == [(1,)]
        with atomic(using=alias):
            pass


@pytest.fixture(autouse=True)
def _new_wrappers() -> Iterator[None]:
    """On which nobody has left anything; used once, and so on the quickest way."""
    aliases = ("native", "dj", "stock_native", "stock_dj")
    before = {alias: connections[alias] for alias in aliases}
    for alias in aliases:
        connections[alias] = before[alias].copy()
        use(alias)
    yield
    for alias in aliases:
        connections[alias].close()
        connections[alias] = before[alias]


@pytest.mark.parametrize("alias", ["native", "dj"])
@pytest.mark.parametrize(("owner", "name"), OF_CLASSES)
def test_a_method_that_was_replaced_on_a_class_is_called(
    alias: str, owner: Any, name: str
) -> None:
    stock, ours = (calls_on(each, owner, name) for each in (STOCK_OF[alias], alias))
    assert ours == stock != []


@pytest.mark.parametrize("alias", ["native", "dj"])
@pytest.mark.parametrize(
    "name", ["cursor", "make_cursor", "_prepare_cursor", "create_cursor", "commit"]
)
def test_a_method_that_was_replaced_on_a_wrapper_is_called(alias: str, name: str) -> None:
    stock, ours = (
        calls_on(each, connections[each], name) for each in (STOCK_OF[alias], alias)
    )
    assert ours == stock != []


@pytest.mark.parametrize("alias", ["native", "dj"])
@pytest.mark.parametrize("switch", ["setting", "wrapper", "class", "subclass"])
def test_queries_are_logged_from_when_it_is_switched_on(
    alias: str, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = []
    for each in (STOCK_OF[alias], alias):
        wrapper = connections[each]
        with CaptureQueriesContext(wrapper):
            use(each)
        wrapper.queries_log.clear()
        use(each)
        assert not wrapper.queries
        with monkeypatch.context() as patch:
            if switch == "setting":
                patch.setattr(settings, "DEBUG", True)
            elif switch == "wrapper":
                patch.setattr(wrapper, "force_debug_cursor", True)
            else:
                owner = type(wrapper) if switch == "subclass" else BaseDatabaseWrapper
                patch.setattr(owner, "queries_logged", property(lambda self: True))
            use(each)
        logs.append([query["sql"] for query in wrapper.queries])
        use(each)
        assert len(wrapper.queries) == len(logs[-1])
        wrapper.queries_log.clear()
    stock, ours = logs
    assert ours == stock == ["SELECT 1", "BEGIN", "SELECT 1", "COMMIT", "BEGIN", "COMMIT"]


class Answering(CursorWrapper):
    """Of a base, or a tool: it has something to say to what Django looks for."""

    def __getattr__(self, name: str) -> Any:
        if name == "fetchall":
            return lambda: "answered"
        return super().__getattr__(name)


def test_a_cursor_that_finds_its_methods_itself_is_asked() -> None:
    """D6."""

    class Base(DatabaseWrapper):
        def make_cursor(self, cursor: Any) -> Any:
            return Answering(cursor, self)

    wrapper: Any = make_release_backend(Base)(connections["native"].settings_dict, "native")
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == "answered"
        assert cursor.fetchone() == (1,)
    wrapper.close()


@pytest.mark.parametrize("name", ["fetchone", "fetchmany", "fetchall"])
def test_a_method_that_djangos_cursors_did_not_have_is_called(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D1: whoever traces rows puts one there."""
    monkeypatch.setattr(
        CursorWrapper, name, lambda self, *args: ("traced", args), raising=False
    )
    for alias in ("stock_native", "native"):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            assert getattr(cursor, name)(5) == ("traced", (5,))
        connections[alias].close()


def test_a_hook_that_was_replaced_by_no_method_is_called() -> None:
    """Of a base, too, whose own `create_cursor()` is not decorated as Django's is."""
    for base in (DatabaseWrapper, Undecorated):
        made: Any = make_release_backend(base)
        wrapper = made(connections["native"].settings_dict, "native")
        create = partial(base.create_cursor, wrapper)
        wrapper.create_cursor = Mock(side_effect=create)
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        wrapper.create_cursor.assert_called_once_with(None)
        wrapper.close()


@pytest.mark.parametrize("alias", ["native", "dj"])
def test_rows_of_a_failing_statement_raise_djangos_errors(alias: str) -> None:
    """D1: whichever way rows are asked for."""
    for each in (STOCK_OF[alias], alias):
        wrapper = connections[each]
        with wrapper.cursor() as cursor:
            cursor.execute("DO $$ BEGIN END $$")
            for name in ("fetchone", "fetchmany", "fetchall"):
                with pytest.raises(wrapper.Database.ProgrammingError) as raw:  # type: ignore[attr-defined]
                    getattr(cursor.cursor, name)()
                with pytest.raises(ProgrammingError, match=re.escape(str(raw.value))):
                    getattr(cursor, name)()
        wrapper.close()
