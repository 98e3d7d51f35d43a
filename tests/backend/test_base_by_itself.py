"""D6: bases that connect or close by themselves, in whatever way; stock is the oracle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError, connections, transaction
from django.db.backends.signals import connection_created
from helpers import DEADLINE, census, installed, run_in_thread, wait_until
from leases import Stop, time_limit
from receivers import receiving
from sessions import pool_for_one
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend, pin_connection, pool_status
from django_pg_real_pool._lease.setup import reset_transaction_state
from django_pg_real_pool._process import reaper

TENANT = "SELECT coalesce(current_setting('app.tenant', true), '')"


def made_with(stock: Any, **methods: Any) -> Any:
    return type("Base", (stock,), {"__module__": "a_users.base", **methods})


def both(alias: str, base: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield a wrapper of the base itself, and one of what is made of it."""
    made = base(type(connections[STOCK_OF[alias]]))
    with installed(STOCK_OF[alias], made) as db:
        yield db
    with installed(alias, make_release_backend(made)) as db:
        yield db


def ask(db: Any, sql: str) -> Any:
    with db.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def insert(db: Any, name: str) -> None:
    with db.cursor() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES (%s)", [name])


# ##### It connects #####


def closes_and_connects(stock: Any) -> Any:
    def reconnect(self: Any) -> None:
        self.close()
        super(base, self).connect()

    base = made_with(stock, reconnect=reconnect)
    return base


def closes_and_connects_beneath(stock: Any) -> Any:
    def reconnect(self: Any) -> None:
        super(base, self).close()
        super(base, self).connect()

    base = made_with(stock, reconnect=reconnect)
    return base


def tries_again(stock: Any) -> Any:
    def ensure_connection(self: Any) -> None:
        if self.connection is None:
            for attempt in range(3):
                try:
                    with self.wrap_database_errors:
                        super(base, self).connect()
                    return
                except OperationalError:
                    if attempt == 2:
                        raise

    base = made_with(
        stock, ensure_connection=ensure_connection, reconnect=lambda self: self.close()
    )
    return base


@pytest.mark.parametrize(
    "base", [closes_and_connects, closes_and_connects_beneath, tries_again]
)
def test_a_base_that_connects_by_itself(
    alias: str, base: Callable[[Any], Any], observer: Any
) -> None:
    """R1, R3, F7: its block is whole, whatever the reaper sees; it is released early."""
    for db in both(alias, base):
        for name in (f"{db.alias} 1", f"{db.alias} 2", f"{db.alias} 3"):
            ask(db, "SELECT 1")
            db.reconnect()
            with transaction.atomic(using=db.alias):
                insert(db, name)
                if hasattr(db, "_lease"):
                    reaper.reap()
                insert(db, f"{name} again")
        db.close()
    assert census(alias).in_use == 0
    assert not pool_status(alias).leases
    for each in (STOCK_OF[alias], alias):
        sql = "SELECT count(*) FROM item WHERE name LIKE %s"
        assert observer.execute(sql, [f"{each} %"]).fetchone() == (6,)


# ##### It closes #####


def closes_beneath(stock: Any) -> Any:
    def let_go(self: Any) -> None:
        super(base, self).close()

    base = made_with(stock, let_go=let_go)
    return base


def test_a_base_that_closes_by_itself_begins_anew(alias: str) -> None:
    """D4, R8: what comes next is a session of its own, as after stock's close()."""
    found: list[Any] = []
    for db in both(alias, closes_beneath):
        tenant = ["red"]

        def set_tenant(connection: Any, tenant: list[str] = tenant) -> None:
            ask(connection, f"SELECT set_config('app.tenant', '{tenant[0]}', false)")

        with receiving(db.alias, set_tenant):
            seen = [ask(db, TENANT)]
            db.let_go()
            tenant[0] = "blue"
            seen.append(ask(db, TENANT))
            db.let_go()
            db.set_autocommit(False)
            insert(db, f"{db.alias} lost")
            db.let_go()
            insert(db, f"{db.alias} kept")
            seen.append(db.get_autocommit())
            db.close()
        found.append(seen)
    assert found == [["red", "blue", True]] * 2


def resets_a_role(stock: Any, always: bool) -> Any:
    def close(self: Any) -> None:
        if (always or self.connection is not None) and not self.closed_in_transaction:
            with self.cursor() as cursor:
                cursor.execute("RESET ROLE")
        super(base, self).close()

    base = made_with(stock, close=close)
    return base


def test_a_base_that_sends_something_when_it_closes_loses_no_callback(alias: str) -> None:
    """F7, D6: what it sends belongs to no block, though autocommit is off still."""
    for db in both(alias, lambda stock: resets_a_role(stock, always=False)):
        called: list[str] = []

        def call(name: str, db: Any = db, called: list[str] = called) -> None:
            transaction.on_commit(lambda: called.append(name), using=db.alias)

        with transaction.atomic(using=db.alias):
            call("before")
            ask(db, "SELECT 1")
        with transaction.atomic(using=db.alias):
            ask(db, "SELECT 1")
            call("after")
        with transaction.atomic(using=db.alias):
            call("alone")
        with pin_connection(db.alias), transaction.atomic(using=db.alias):
            ask(db, "SELECT 1")
            call("pinned")
        assert called == ["before", "after", "alone", "pinned"], db


def test_a_base_that_sends_something_when_it_closes_holds_nothing_then(alias: str) -> None:
    """R8: also where nothing was leased before."""
    stock = type(connections[STOCK_OF[alias]])
    with installed(alias, make_release_backend(resets_a_role(stock, always=True))) as db:
        for _ in range(3):
            ask(db, "SELECT 1")
            db.close()
            assert db.connection is None
        wait_until(lambda: census(alias).in_use == 0, "nothing is in use", DEADLINE)


def test_a_base_that_sends_something_when_it_closes_gets_another_connection(
    alias: str,
) -> None:
    """D4, R3: where it has to forget what was set on one, in the midst of the set-up."""
    stock = type(connections[STOCK_OF[alias]])
    now = "a"

    def set_something(connection: Any) -> None:
        ask(connection, f"SELECT set_config('app.{now}', '1', false)")

    with (
        receiving(alias, set_something),
        installed(alias, make_release_backend(resets_a_role(stock, always=True))) as db,
    ):
        for mine in ("a", "b", "c"):
            now = "another"  # request, of a wrapper of another class
            run_in_thread(lambda: ask(connections[alias], "SELECT 1"))
            now = mine
            sql = "SELECT coalesce(current_setting('app.{}', true), '')"
            assert [ask(db, sql.format(name)) for name in (mine, "another")] == ["1", ""]
            db.close()
        wait_until(lambda: census(alias).in_use == 0, "nothing is in use", DEADLINE)
    run_in_thread(lambda: ask(connections[alias], "SELECT 1"))


def rolls_back(stock: Any) -> Any:
    def close(self: Any) -> None:
        if self.connection is not None and not self.in_atomic_block:
            self.rollback()
        super(base, self).close()

    base = made_with(stock, close=close)
    return base


def switches_autocommit_on(stock: Any) -> Any:
    def close(self: Any) -> None:
        if self.connection is not None and not self.in_atomic_block:
            self.set_autocommit(True)
        super(base, self).close()

    base = made_with(stock, close=close)
    return base


def closes_twice(stock: Any) -> Any:
    def close(self: Any) -> None:
        try:
            super(base, self).close()
        finally:
            super(base, self).close()

    base = made_with(stock, close=close)
    return base


@pytest.mark.parametrize("base", [rolls_back, switches_autocommit_on, closes_twice])
def test_a_base_that_tidies_up_when_it_closes_loses_no_callback(
    alias: str, base: Callable[[Any], Any]
) -> None:
    """F7, D6: each runs once, with autocommit on, though a lease ends before."""
    for db in both(alias, base):
        called: list[Any] = []

        def call(db: Any = db, called: list[Any] = called) -> None:
            called.append((db.in_atomic_block, db.get_autocommit()))

        for _ in range(2):
            with transaction.atomic(using=db.alias):
                transaction.on_commit(call, using=db.alias)
                ask(db, "SELECT 1")
            ask(db, "SELECT 1")
        assert called == [(False, True)] * 2


# ##### It closes before it connects #####


def closes_in_connect(stock: Any) -> Any:
    def connect(self: Any) -> None:
        self.close()
        super(base, self).connect()

    base = made_with(stock, connect=connect)
    return base


def closes_beneath_in_connect(stock: Any) -> Any:
    def connect(self: Any) -> None:
        super(base, self).connect()
        super(base, self).close()
        super(base, self).connect()

    base = made_with(stock, connect=connect)
    return base


def fails_to_connect(stock: Any) -> Any:
    """Return a base whose next `fails` attempts to connect fail."""

    def get_new_connection(self: Any, params: Any) -> Any:
        if self.fails:
            self.fails -= 1
            raise self.Database.OperationalError("not this time")
        return super(base, self).get_new_connection(params)

    base = made_with(stock, get_new_connection=get_new_connection, fails=0)
    return base


def closes_when_it_failed(stock: Any) -> Any:
    def ensure_connection(self: Any) -> None:
        if self.connection is None:
            for _ in range(3):
                try:
                    with self.wrap_database_errors:
                        self.connect()
                    return
                except OperationalError:
                    self.close()

    return made_with(fails_to_connect(stock), ensure_connection=ensure_connection, fails=1)


@pytest.mark.parametrize(
    "base", [closes_in_connect, closes_beneath_in_connect, closes_when_it_failed]
)
def test_a_block_is_whole_though_its_base_closes_before_it_connects(
    alias: str, base: Callable[[Any], Any], observer: Any
) -> None:
    """A3, F7, D6: stock connects where the block begins, outside of it."""
    for db in both(alias, base):
        called: list[str] = []
        with suppress(ZeroDivisionError), transaction.atomic(using=db.alias):
            transaction.on_commit(partial(called.append, "lost"), using=db.alias)
            insert(db, f"{db.alias} 1")
            assert db.in_atomic_block
            insert(db, f"{db.alias} 2")
            raise ZeroDivisionError
        db.close()
        db.fails = 1
        with transaction.atomic(using=db.alias):
            transaction.on_commit(partial(called.append, "kept"), using=db.alias)
            insert(db, f"{db.alias} 3")
        db.ensure_connection()
        assert ask(db, "SELECT 1") == 1
        db.close()
        assert called == ["kept"]
        found = observer.execute("SELECT name FROM item").fetchall()
        assert (f"{db.alias} 3",) in found
        assert (f"{db.alias} 1",) not in found
        assert (f"{db.alias} 2",) not in found
    assert census(alias).in_use == 0


# ##### It closes where it can't connect #####


def gives_up_in_connect(stock: Any) -> Any:
    def connect(self: Any) -> None:
        try:
            super(base, self).connect()
        except self.Database.OperationalError:
            self.close()
            raise

    base = made_with(fails_to_connect(stock), connect=connect)
    return base


def gives_up_in_ensure_connection(stock: Any) -> Any:
    def ensure_connection(self: Any) -> None:
        try:
            super(base, self).ensure_connection()
        except OperationalError:
            self.close()
            raise

    base = made_with(fails_to_connect(stock), ensure_connection=ensure_connection)
    return base


def connects_at_last(stock: Any) -> Any:
    def ensure_connection(self: Any) -> None:
        while self.connection is None:
            try:
                self.connect()
            except self.Database.OperationalError:
                self.close()

    return made_with(fails_to_connect(stock), ensure_connection=ensure_connection)


def lose_the_first_of_two(db: Any) -> None:
    """Raise out of a block whose first statement found no connection, and whose second did."""
    with suppress(ZeroDivisionError), transaction.atomic(using=db.alias):
        with suppress(OperationalError), transaction.atomic(using=db.alias):
            insert(db, "one")
        db.fails = 0
        assert db.in_atomic_block
        insert(db, "two")
        raise ZeroDivisionError


def lose_one_in_manual_mode(db: Any) -> None:
    db.set_autocommit(False)
    with suppress(OperationalError):
        insert(db, "one")
    db.fails = 0
    assert not db.get_autocommit()
    insert(db, "two")
    db.rollback()
    db.set_autocommit(True)


def ensure_in_a_block(db: Any) -> None:
    """As assertNumQueries() does."""
    with suppress(ZeroDivisionError), transaction.atomic(using=db.alias):
        with suppress(OperationalError):
            db.ensure_connection()
        db.fails = 0
        insert(db, "one")
        assert db.in_atomic_block
        insert(db, "two")
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "program", [lose_the_first_of_two, lose_one_in_manual_mode, ensure_in_a_block]
)
@pytest.mark.parametrize(
    "base", [gives_up_in_connect, gives_up_in_ensure_connection, connects_at_last]
)
def test_a_block_goes_on_though_its_base_has_closed(
    alias: str, base: Callable[[Any], Any], program: Callable[[Any], None], observer: Any
) -> None:
    """A4, F7, D2: nothing of it is committed by itself, and the mode stays as it was set."""
    made = make_release_backend(base(type(connections[STOCK_OF[alias]])))
    with installed(alias, made) as db:
        ask(db, "SELECT 1")
        db.fails = 1
        program(db)
        assert not db.in_atomic_block
        assert db.get_autocommit()
        db.close()
    assert observer.execute("SELECT name FROM item").fetchall() == []
    assert census(alias).in_use == 0


def tries_twice(stock: Any) -> Any:
    def ensure_connection(self: Any) -> None:
        for _ in range(2):
            if self.connection is None:
                with suppress(OperationalError, ProgrammingError):
                    self.connect()
                    return
                self.close()

    base = made_with(stock, ensure_connection=ensure_connection)
    return base


def test_a_block_whose_connection_is_lost_does_not_go_on(alias: str, observer: Any) -> None:
    """F7: such a base makes no new one for it, of which half would be committed."""
    made = make_release_backend(tries_twice(type(connections[STOCK_OF[alias]])))
    with installed(alias, made) as db:
        with suppress(OperationalError), transaction.atomic(using=alias):
            insert(db, "one")
            db._lease.drop()
            with suppress(OperationalError):
                db.ensure_connection()
            insert(db, "two")
        db.close()
    assert observer.execute("SELECT name FROM item").fetchall() == []
    assert census(alias).in_use == 0


@pytest.mark.parametrize("program", [lose_the_first_of_two, lose_one_in_manual_mode])
def test_a_block_goes_on_though_a_receiver_has_closed(
    alias: str, program: Callable[[Any], None], observer: Any
) -> None:
    """A4, F7, D2: of the engine as it is."""

    def refuse(db: Any) -> None:
        if refusals:
            refusals.pop()
            db.close()
            raise OperationalError("not this time")

    db: Any = connections[alias]
    db.close()
    refusals = [1]
    with receiving(alias, refuse):
        program(db)
        assert not refusals
    db.close()
    assert observer.execute("SELECT name FROM item").fetchall() == []
    assert census(alias).in_use == 0


def one_block(db: Any) -> None:
    with pytest.raises(Stop), transaction.atomic(using=db.alias):
        insert(db, "one")


def manual_mode(db: Any) -> None:
    db.set_autocommit(False)
    with pytest.raises(Stop):
        insert(db, "one")


@pytest.mark.parametrize("program", [one_block, manual_mode])
def test_a_time_limit_that_closes_ends_the_session(
    alias: str, program: Callable[[Any], None]
) -> None:
    """A4, D2: while the first statement waits for the pool; what comes next is as ever."""
    is_taken, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(using=name):
            ask(connections[name], "SELECT 1")
            is_taken.set()
            may_go_on.wait(DEADLINE)

    def close() -> None:
        db.close()
        may_go_on.set()

    with pool_for_one(alias) as name:
        db: Any = connections[name]
        ask(db, "SELECT 1")
        holding = threading.Thread(target=run_in_thread, args=[hold])
        holding.start()
        assert is_taken.wait(DEADLINE)
        with time_limit(0.2, close):
            program(db)
        holding.join(DEADLINE)
        assert db.get_autocommit()
        for _ in range(2):
            with transaction.atomic(using=name):
                assert ask(db, "SELECT 2") == 2
        assert census(name).in_use == 0


# ##### All of it is its own #####


def connects_wholly_by_itself(stock: Any) -> Any:
    """Return a base that calls no connect() of Django's, and whose cursors set a tenant."""

    def connect(self: Any) -> None:
        reset_transaction_state(self)
        self.health_check_done, self.errors_occurred = True, False
        self.closed_in_transaction, self.close_at = False, None
        self.connection = self.get_new_connection(self.get_connection_params())
        self.set_autocommit(self.settings_dict["AUTOCOMMIT"])
        self.init_connection_state()
        connection_created.send(sender=self.__class__, connection=self)

    def _cursor(self: Any, name: str | None = None) -> Any:
        cursor = super(base, self)._cursor(name)
        if self.tenant:
            cursor.execute(f"SET app.tenant = '{self.tenant}'")
        return cursor

    base = made_with(stock, connect=connect, _cursor=_cursor, tenant="")
    return base


@pytest.mark.parametrize("how", ["cursor", "pin"])
def test_a_base_that_connects_wholly_by_itself_shows_no_tenant_to_others(
    alias: str, how: str
) -> None:
    """S3: what one request's cursors have set is undone before the next one's are used."""
    made = make_release_backend(
        connects_wholly_by_itself(type(connections[STOCK_OF[alias]]))
    )
    with pool_for_one(alias) as name, installed(name, made) as db:
        db.tenant = "red"
        assert ask(db, TENANT) == "red"
        db.close()

        db.tenant = ""
        if how == "cursor":
            assert ask(db, TENANT) == ""
        with pin_connection(name):
            assert ask(db, TENANT) == ""


def test_a_bases_own_ensure_connection_may_be_called_in_an_event_loop(alias: str) -> None:
    """D6: where it has nothing to do, and does not call Django's."""

    def ensure_connection(self: Any) -> None:
        if self.connection is None:
            super(base, self).ensure_connection()

    async def ensure() -> None:
        db.ensure_connection()

    base = made_with(
        type(connections[STOCK_OF[alias]]), ensure_connection=ensure_connection
    )
    with installed(alias, make_release_backend(base)) as db:
        db.ensure_connection()
        asyncio.run(ensure())
        db.close()


# ##### Its own class is a base again #####


def test_a_subclass_of_a_made_class_may_close_before_it_connects(
    alias: str, observer: Any
) -> None:
    """A3, F7: its block is whole."""
    stock = type(connections[STOCK_OF[alias]])
    made = make_release_backend(made_with(stock))

    class Mine(made):  # type: ignore[misc,valid-type]
        def connect(self) -> None:
            self.close()
            super().connect()

    with installed(alias, Mine) as db:
        with suppress(ZeroDivisionError), transaction.atomic(using=alias):
            insert(db, "1")
            insert(db, "2")
            raise ZeroDivisionError
        assert observer.execute("SELECT count(*) FROM item").fetchone() == (0,)
        assert db.connection is None


# ##### It connects in its `_cursor()`, or has none #####


def test_what_a_base_sets_once_it_has_reconnected_reaches_nobody_else(alias: str) -> None:
    """S3: in its own `_cursor()`, through the driver's connection."""
    stock: Any = type(connections[STOCK_OF[alias]])

    def _cursor(self: Any, name: str | None = None) -> Any:
        cursor = super(base, self)._cursor(name)
        if self.tenant:
            cursor.close()
            self.connection.close()
            self.close()
            cursor = super(base, self)._cursor(name)
            self.connection.cursor().execute(f"SET app.tenant = '{self.tenant}'")
        return cursor

    base = made_with(stock, _cursor=_cursor, tenant="")
    with installed(alias, make_release_backend(base)) as db:
        ask(db, "SELECT 1")
        db.tenant = "red"
        ask(db, "SELECT 1")
        db.close()
        db.tenant = ""
        assert [ask(db, TENANT) for _ in range(3)] == [""] * 3


def test_a_pin_under_an_open_cursor_cleans_nothing(alias: str) -> None:
    """R6: of what another class's `_cursor()` has set on the connections of the alias."""
    stock: Any = type(connections[STOCK_OF[alias]])

    def _cursor(self: Any, name: str | None = None) -> Any:
        cursor = super(base, self)._cursor(name)
        with super(base, self)._cursor() as other:
            other.execute("SET app.tenant = 'red'")
        return cursor

    base = made_with(stock, _cursor=_cursor)
    with installed(alias, make_release_backend(base)) as db:
        ask(db, "SELECT 1")
    plain: Any = connections[alias]
    with plain.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 5)")
        rows = [cursor.fetchone()[0]]
        with pin_connection(alias):
            rows += [row[0] for row in cursor.fetchall()]
    plain.close()
    assert rows == [1, 2, 3, 4, 5]
    assert run_in_thread(lambda: census(alias).in_use) == 0
