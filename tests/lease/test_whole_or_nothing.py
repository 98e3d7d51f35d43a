"""F7: a connection that dies inside a transaction takes all of it along, as in stock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pytest
from django.db import OperationalError, connections, transaction
from django.db.transaction import atomic
from helpers import census, wait_until
from leases import Undo, committed
from settings import STOCK_OF
from side_by_side import same_for_all
from tcp_proxy import Proxy
from traffic import warm_up

from django_pg_real_pool import pin_connection

pytest_plugins = ("fix_faults",)


class Story:
    """One run of a program on one wrapper: its steps, and what became of each."""

    def __init__(self, db: Any, observer: Any, death: Death) -> None:
        self.db = db
        # What is logged has their numbers.
        db.savepoint_state = db._named_cursor_idx = 0
        self.observer = observer
        self.happened: list[str] = []
        self._death = death

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note how a step ends: well, or with an error of which class."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
            self.happened.append(f"{name}: {type(error).__name__}")
        else:
            self.happened.append(f"{name}: ok")

    @contextmanager
    def block(self, **options: Any) -> Iterator[None]:
        with self.step("the block"), atomic(using=self.db.alias, **options):
            yield

    def insert(self, name: str) -> None:
        with self.db.cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES (%s)", [name])

    def add(self, name: str) -> None:
        """Insert a row as a step of its own: an error is noted, and goes no further."""
        with self.step(name):
            self.insert(name)

    def on_commit(self, name: str) -> None:
        self.db.on_commit(lambda: self.happened.append(f"{name} was called"))

    def die(self) -> None:
        """Let the connection of the transaction die, without its noticing."""
        with self.db.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        self._death(self, pid)
        self.wait_for_the_end_of(pid)

    def wait_for_the_end_of(self, pid: int) -> None:
        sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        wait_until(
            lambda: self.observer.execute(sql, [pid]).fetchone() == (0,),
            f"the server process {pid} has ended",
        )


Program = Callable[[Story], None]
Death = Callable[[Story, int], None]


class Outcome(NamedTuple):
    """What a user, and everybody else, can see once a program has ended."""

    happened: list[str]
    committed: list[str]
    in_atomic_block: bool
    needs_rollback: bool
    callbacks_left: int
    queries: list[str]


def tell(alias: str, program: Program, observer: Any, death: Death) -> Outcome:
    """Run a program on a fresh session of `alias`, and use the wrapper after it."""
    db: Any = connections[alias]
    db.close()
    db.queries_log.clear()
    observer.execute("TRUNCATE item RESTART IDENTITY")
    story = Story(db, observer, death)
    program(story)
    left = committed(observer)
    with story.block():
        story.add("afterwards")
        story.on_commit("what was asked for afterwards")
    story.add("and once more")
    assert committed(observer) == [*left, "afterwards", "and once more"]
    outcome = Outcome(
        happened=story.happened,
        committed=left,
        in_atomic_block=db.in_atomic_block,
        needs_rollback=db.needs_rollback,
        callbacks_left=len(db.run_on_commit),
        queries=[same_for_all(str(query["sql"])) for query in db.queries],
    )
    db.close()
    return outcome


def assert_whole(alias: str) -> None:
    """Prove that the pool still has its two connections, and can give them out."""
    wait_until(
        lambda: census(alias).in_use == 0, f"all of {alias} is idle: {census(alias)}"
    )
    copies = [connections[alias].copy() for _ in range(2)]
    cursors = [copy.cursor() for copy in copies]
    for cursor in cursors:
        cursor.execute("SELECT pg_backend_pid()")
    assert len({cursor.fetchone()[0] for cursor in cursors}) == 2
    for copy in copies:
        copy.close()


def assert_as_stock(alias: str, program: Program, observer: Any, death: Death) -> Outcome:
    """Fail with what an engine did otherwise than its stock; it must lose nothing."""
    warm_up(alias)
    stock = tell(STOCK_OF[alias], program, observer, death)
    ours = tell(alias, program, observer, death)
    assert ours == stock
    assert connections[alias].connection is None
    assert_whole(alias)
    return ours


@pytest.fixture
def logged(alias: str) -> Iterator[None]:
    """Let both wrappers make debug cursors."""
    both: list[Any] = [connections[alias], connections[STOCK_OF[alias]]]
    for each in both:
        each.queries_log.clear()
        each.force_debug_cursor = True
    yield
    for each in both:
        each.force_debug_cursor = False
        each.queries_log.clear()


# ##### Deaths #####


def terminated(story: Story, pid: int) -> None:
    story.observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


def idle_for_too_long(story: Story, pid: int) -> None:
    with story.db.cursor() as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'")


def closed_by_hand(story: Story, pid: int) -> None:
    """Close the driver's connection, beneath whatever a pool puts around it."""
    connection = story.db.connection
    getattr(connection, "driver_connection", connection).close()


OTHER_DEATHS = [idle_for_too_long, closed_by_hand]


# ##### Programs #####


def a_statement_fails_and_the_next_one_is_tried(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        story.die()
        story.add("lost")
        story.add("two")
        story.on_commit("a late callback")


def the_block_ends_with_the_error_that_was_caught(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        story.die()
        story.add("lost")


def nobody_notices_before_the_end(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        story.die()


def the_error_leaves_the_block(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        story.die()
        story.insert("lost")


def many_statements_follow(story: Story) -> None:
    with story.block():
        story.add("one")
        story.die()
        for number in range(10):
            story.add(f"lost {number}")


def one_cursor_is_used_throughout(story: Story) -> None:
    sql = "INSERT INTO item (name) VALUES (%s)"
    with story.block():
        story.on_commit("the callback")
        with story.step("the cursor"), story.db.cursor() as cursor:
            cursor.execute(sql, ["one"])
            story.die()
            for name in ("lost", "two"):
                with story.step(name):
                    cursor.execute(sql, [name])
        story.add("three")


def it_dies_in_an_inner_block(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        with story.block():
            story.on_commit("the inner callback")
            story.insert("inner")
            story.die()
            story.insert("lost")
        story.add("two")


def it_dies_in_an_inner_block_that_catches(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        with story.block():
            story.on_commit("the inner callback")
            story.die()
            story.add("lost")
            story.add("inner")
        story.add("two")


def it_dies_in_an_inner_block_without_a_savepoint(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        with story.block(savepoint=False):
            story.die()
            story.insert("lost")
        story.add("two")


def an_inner_block_follows(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        story.die()
        story.add("lost")
        with story.step("the inner block"), atomic(using=story.db.alias):
            story.add("inner")
        with story.step("another"), atomic(using=story.db.alias, savepoint=False):
            story.add("innermost")
        story.add("two")


def an_inner_block_was_rolled_back_before(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        with suppress(Undo), atomic(using=story.db.alias):
            story.add("undone")
            raise Undo
        story.die()
        story.add("lost")
        story.add("two")


def an_inner_block_is_rolled_back_after(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        with story.step("undo"), suppress(Undo), atomic(using=story.db.alias):
            story.add("inner")
            story.die()
            raise Undo
        story.add("two")


def a_savepoint_is_rolled_back_by_hand(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        sid = transaction.savepoint(using=story.db.alias)
        story.die()
        story.add("lost")
        with story.step("the savepoint"):
            transaction.savepoint_rollback(sid, using=story.db.alias)
        story.add("two")


def the_rollback_is_asked_for(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        story.die()
        story.add("lost")
        transaction.set_rollback(True, using=story.db.alias)


def the_rollback_is_called_off(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        with story.block():
            story.die()
            story.insert("lost")
        transaction.set_rollback(False, using=story.db.alias)
        story.add("two")


def the_block_is_durable(story: Story) -> None:
    with story.block(durable=True):
        story.on_commit("the callback")
        story.add("one")
        story.die()
        story.add("lost")
        story.add("two")


def a_server_side_cursor_is_open(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        rows = story.db.chunked_cursor()
        rows.execute("SELECT generate_series(1, 10)")
        assert rows.fetchone() == (1,)
        story.die()
        story.add("lost")
        with story.step("the next row"):
            rows.fetchone()
        with story.step("the cursor's end"):
            rows.close()
        story.add("two")


def a_server_side_cursor_from_before_is_open(story: Story) -> None:
    rows = story.db.chunked_cursor()
    rows.execute("SELECT generate_series(1, 10)")
    assert rows.fetchone() == (1,)
    with story.block():
        story.on_commit("the callback")
        story.add("one")
        story.die()
        story.add("lost")
        with story.step("the next row"):
            rows.fetchone()
        with story.step("the cursor's end"):
            rows.close()
        story.add("two")


def a_cursor_from_before_is_open(story: Story) -> None:
    with story.db.cursor(), story.block():
        story.on_commit("the callback")
        story.add("one")
        story.die()
        story.add("lost")
        story.add("two")


def it_is_pinned_around_the_block(story: Story) -> None:
    with pin_connection(story.db.alias):
        a_statement_fails_and_the_next_one_is_tried(story)


def it_was_pinned_within_the_block(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        with pin_connection(story.db.alias):
            story.add("one")
            story.die()
            story.add("lost")
        story.add("two")


def autocommit_is_off(story: Story) -> None:
    story.db.set_autocommit(False)
    story.add("one")
    story.die()
    story.add("lost")
    story.add("two")
    with story.step("commit()"):
        story.db.commit()
    story.db.close()


def autocommit_is_off_and_it_is_rolled_back(story: Story) -> None:
    story.db.set_autocommit(False)
    story.add("one")
    story.die()
    story.add("lost")
    story.add("two")
    with story.step("rollback()"):
        story.db.rollback()
    story.db.close()


def autocommit_is_off_and_nothing_follows(story: Story) -> None:
    story.db.set_autocommit(False)
    story.add("one")
    story.die()
    story.add("lost")
    with story.step("commit()"):
        story.db.commit()
    story.db.close()


def autocommit_is_off_around_a_block(story: Story) -> None:
    story.db.set_autocommit(False)
    story.add("one")
    with story.block():
        story.on_commit("the callback")
        story.die()
        story.add("lost")
        story.add("two")
    story.add("three")
    with story.step("commit()"):
        story.db.commit()
    story.db.close()


def begun_by_hand(story: Story) -> None:
    with story.db.cursor() as cursor:
        cursor.execute("BEGIN")
    story.add("one")
    story.die()
    story.add("lost")
    story.add("two")
    with story.step("COMMIT"), story.db.cursor() as cursor:
        cursor.execute("COMMIT")
    story.db.close()


def begun_by_hand_and_committed_by_method(story: Story) -> None:
    with story.db.cursor() as cursor:
        cursor.execute("BEGIN")
    story.add("one")
    story.die()
    story.add("lost")
    story.add("two")
    with story.step("commit()"):
        story.db.commit()
    story.db.close()


PROGRAMS: list[Program] = [
    a_statement_fails_and_the_next_one_is_tried,
    the_block_ends_with_the_error_that_was_caught,
    nobody_notices_before_the_end,
    the_error_leaves_the_block,
    many_statements_follow,
    one_cursor_is_used_throughout,
    it_dies_in_an_inner_block,
    it_dies_in_an_inner_block_that_catches,
    it_dies_in_an_inner_block_without_a_savepoint,
    an_inner_block_follows,
    an_inner_block_was_rolled_back_before,
    an_inner_block_is_rolled_back_after,
    a_savepoint_is_rolled_back_by_hand,
    the_rollback_is_asked_for,
    the_rollback_is_called_off,
    the_block_is_durable,
    a_server_side_cursor_is_open,
    a_server_side_cursor_from_before_is_open,
    a_cursor_from_before_is_open,
    it_is_pinned_around_the_block,
    it_was_pinned_within_the_block,
    autocommit_is_off,
    autocommit_is_off_and_it_is_rolled_back,
    autocommit_is_off_and_nothing_follows,
    autocommit_is_off_around_a_block,
    begun_by_hand,
    begun_by_hand_and_committed_by_method,
]

#: Enough of them to tell one way to die, or to watch, from another.
SOME_PROGRAMS = [
    a_statement_fails_and_the_next_one_is_tried,
    the_block_ends_with_the_error_that_was_caught,
    nobody_notices_before_the_end,
    it_dies_in_an_inner_block,
    an_inner_block_follows,
    a_server_side_cursor_is_open,
    autocommit_is_off,
    begun_by_hand,
]


# ##### Tests #####


def assert_lost(outcome: Outcome) -> None:
    assert outcome.committed == []
    assert [each for each in outcome.happened if "callback was called" in each] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_transaction_whose_connection_dies_is_lost_as_a_whole(
    alias: str, observer: Any, program: Program
) -> None:
    """F7, D1: the same errors as in stock, nothing committed, no callback."""
    assert_lost(assert_as_stock(alias, program, observer, terminated))


@pytest.mark.parametrize("death", OTHER_DEATHS)
@pytest.mark.parametrize("program", SOME_PROGRAMS)
def test_a_transaction_is_lost_as_a_whole_however_its_connection_dies(
    alias: str, observer: Any, program: Program, death: Death
) -> None:
    """F7, D1: by the server's own time limit, or by the user's hand."""
    assert_lost(assert_as_stock(alias, program, observer, death))


@pytest.mark.parametrize("program", SOME_PROGRAMS)
def test_a_transaction_that_is_logged_is_lost_as_a_whole(
    alias: str, observer: Any, program: Program, logged: None
) -> None:
    """F7, D1: through debug cursors too, and what is logged is what stock logs."""
    assert_lost(assert_as_stock(alias, program, observer, terminated))


def die_at_once(story: Story) -> None:
    with story.step("the first statement"), story.db.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def the_first_statement_of_a_block(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        die_at_once(story)
        story.add("two")
        story.add("three")


def the_first_statement_of_a_block_and_nothing_else(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        die_at_once(story)


def the_first_statement_of_an_inner_block(story: Story) -> None:
    with story.block():
        story.on_commit("the callback")
        with story.block():
            die_at_once(story)
            story.add("two")
        story.add("three")


def the_first_statement_with_autocommit_off(story: Story) -> None:
    story.db.set_autocommit(False)
    die_at_once(story)
    story.add("two")
    with story.step("commit()"):
        story.db.commit()
    story.db.close()


@pytest.mark.parametrize(
    "program",
    [
        the_first_statement_of_a_block,
        the_first_statement_of_a_block_and_nothing_else,
        the_first_statement_of_an_inner_block,
        the_first_statement_with_autocommit_off,
    ],
)
def test_a_transaction_is_lost_if_its_first_statement_kills_it(
    alias: str, observer: Any, program: Program
) -> None:
    """F7: that statement was sent, so what comes after it is of the same transaction."""
    assert_lost(assert_as_stock(alias, program, observer, terminated))


@pytest.mark.parametrize("number", [1, 3])
def test_a_read_after_the_death_is_refused_too(
    alias: str, wrapper: Any, observer: Any, number: int
) -> None:
    """F7: another connection would show another snapshot, without the block's own rows."""
    story = Story(wrapper, observer, terminated)
    with story.block():
        story.add("one")
        story.die()
        for _ in range(number):
            with pytest.raises(OperationalError), wrapper.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM item")
    assert story.happened == ["one: ok", "the block: OperationalError"]
    assert wrapper.connection is None
    assert_whole(alias)


@pytest.mark.parametrize("program", SOME_PROGRAMS)
def test_a_transaction_that_the_network_cut_is_lost_as_a_whole(
    proxied: str, proxy: Proxy, observer: Any, program: Program
) -> None:
    """F7: however it died; the server may not even have noticed."""

    def cut(story: Story, pid: int) -> None:
        proxy.drop()

    outcome = tell(proxied, program, observer, cut)
    assert_lost(outcome)
    assert "two: ok" not in outcome.happened
    assert connections[proxied].connection is None


def test_a_connection_that_was_given_away_within_its_block_takes_it_along(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """F7: `connection.connection.close()`, which gives it to a pool of SQLAlchemy's."""
    warm_up(alias)
    story = Story(wrapper, observer, terminated)
    with story.step("the block"), atomic(using=alias):
        story.on_commit("the callback")
        story.add("one")
        wrapper.connection.close()
        story.add("two")
        story.add("three")
    assert committed(observer) == []
    assert story.happened[0] == "one: ok"
    assert [each for each in story.happened[1:] if each.endswith((" ok", "called"))] == []
    wrapper.close()
    story.add("afterwards")
    assert committed(observer) == ["afterwards"]
    assert wrapper.connection is None
    assert_whole(alias)


def test_a_transaction_that_died_ends_at_close(
    alias: str, wrapper: Any, observer: Any
) -> None:
    """F7: close() ends it as commit() and rollback() do; what follows is another one."""
    warm_up(alias)
    story = Story(wrapper, observer, terminated)
    wrapper.set_autocommit(False)
    story.add("one")
    story.die()
    story.add("lost")
    story.add("two")
    wrapper.close()
    story.add("three")
    assert story.happened[-1] == "three: ok"
    assert [each for each in story.happened if each.endswith("ok")] == [
        "one: ok",
        "three: ok",
    ]
    assert committed(observer) == ["three"]
    assert_whole(alias)
