"""R3: nothing that raises can leak a lease."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created
from django.db.transaction import atomic
from helpers import backend_pid
from items import Item
from leases import (
    ROWS,
    Stop,
    Undo,
    add,
    assert_usable,
    committed,
    is_leased,
)

from django_pg_real_pool import pin_connection

pytest_plugins = ["fix_traffic"]


ERRORS = [ValueError, psycopg.InterfaceError, KeyboardInterrupt]


def raiser(error: type[BaseException]) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error("by the test")

    return fail


def expected(error: type[BaseException]) -> type[BaseException]:
    """Return what Django makes of a driver's error."""
    return InterfaceError if error is psycopg.InterfaceError else error


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["create_cursor", "make_cursor", "_prepare_cursor"])
@pytest.mark.parametrize("within", ["nothing", "a block", "a pin", "a used block"])
def test_a_cursor_that_can_not_be_made_holds_nothing(
    warm: str, wrapper: Any, observer: Any, error: Any, where: str, within: str
) -> None:
    """R3: a checkout for a cursor that never came to be is undone."""
    with ExitStack() as stack:
        if "block" in within:
            stack.enter_context(atomic(using=warm))
        if within == "a used block":
            backend_pid(warm)
        if within == "a pin":
            stack.enter_context(pin_connection(warm))
        held = within in ("a pin", "a used block")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(wrapper), where, raiser(error))
            with pytest.raises(expected(error)):
                wrapper.cursor()
            assert is_leased(warm) is held
    assert_usable(warm, observer)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "where", ["init_connection_state", "check_settings", "get_connection_params"]
)
@pytest.mark.parametrize(
    ("how", "within"),
    [
        ("cursor", "nothing"),
        ("cursor", "a block"),
        ("cursor", "nested blocks"),
        ("ensure_connection", "nothing"),
        ("connect", "nothing"),
        ("pin", "nothing"),
        ("pin", "a block"),
    ],
)
def test_a_connection_that_can_not_be_set_up_goes_back(
    warm: str, wrapper: Any, observer: Any, error: Any, where: str, within: str, how: str
) -> None:
    """R3: what fails between checkout and the first hold leaves nothing checked out."""

    def check_out() -> None:
        if how == "pin":
            with pin_connection(warm):
                pass
        elif how == "cursor":
            wrapper.cursor().close()
        else:
            getattr(wrapper, how)()

    # connect() raises what the driver raises, everything else what Django makes of it.
    errors = (error, expected(error))
    with suppress(*errors), ExitStack() as stack:
        if within != "nothing":
            stack.enter_context(atomic(using=warm))
        if within == "nested blocks":
            stack.enter_context(atomic(using=warm))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(wrapper), where, raiser(error))
            try:
                check_out()
            except errors:
                assert not is_leased(warm)
                raise
            else:  # a base that does not ask for it needs no such thing
                stack.close()
                wrapper.close()
    connections[warm].close()
    assert_usable(warm, observer)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("within", ["nothing", "a block"])
@pytest.mark.parametrize("queries_first", [False, True])
def test_a_receiver_that_raises_leaks_nothing(
    warm: str,
    wrapper: Any,
    observer: Any,
    error: type[BaseException],
    within: str,
    queries_first: bool,
) -> None:
    """R3: a receiver of connection_created is user code, and it may fail."""

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection is wrapper:
            if queries_first:
                backend_pid(warm)
            raise error("by the receiver")

    connection_created.connect(receive)
    try:
        with suppress(expected(error)), ExitStack() as stack:
            if within == "a block":
                stack.enter_context(atomic(using=warm))
            try:
                wrapper.cursor()
            finally:
                assert not is_leased(warm)
    finally:
        connection_created.disconnect(receive)
    assert_usable(warm, observer)


def test_a_receiver_that_raised_is_asked_again(warm: str, wrapper: Any) -> None:
    """R3: a set-up that failed was none; the next checkout does it in full."""
    calls: list[int] = []

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection is wrapper:
            calls.append(1)
            if len(calls) == 1:
                raise Undo

    connection_created.connect(receive)
    try:
        with pytest.raises(Undo):
            wrapper.cursor()
        backend_pid(warm)
        backend_pid(warm)
    finally:
        connection_created.disconnect(receive)
    assert len(calls) == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_callback_that_raises_leaks_nothing(
    warm: str, observer: Any, error: type[BaseException]
) -> None:
    """R3: also if it had a cursor open, or was within a block."""

    def fail_in_a_block() -> None:
        with atomic(using=warm), connections[warm].cursor() as cursor:
            cursor.execute("INSERT INTO item (name) VALUES ('undone')")
            raise error

    def commit_and_fail() -> None:
        with atomic(using=warm):
            add(warm, "kept")
            transaction.on_commit(fail_in_a_block, using=warm)

    with pytest.raises(error):
        commit_and_fail()
    assert committed(observer) == ["kept"]
    assert_usable(warm, observer)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("within", ["nothing", "a block", "a pin"])
@pytest.mark.parametrize("sent", [False, True])
def test_an_execute_wrapper_that_raises_leaks_nothing(
    warm: str,
    wrapper: Any,
    observer: Any,
    error: type[BaseException],
    within: str,
    sent: bool,
) -> None:
    """R3: before the statement is sent, or after."""

    def interrupt(execute: Any, *args: Any) -> None:
        if sent:
            execute(*args)
        raise error

    def run() -> None:
        with ExitStack() as stack:
            if within == "a block":
                stack.enter_context(atomic(using=warm))
            if within == "a pin":
                stack.enter_context(pin_connection(warm))
            with wrapper.execute_wrapper(interrupt):
                Item.objects.using(warm).count()

    with pytest.raises(error):
        run()
    assert not is_leased(warm)
    assert_usable(warm, observer)


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_a_savepoint_that_can_not_be_sent_leaks_nothing(
    warm: str, wrapper: Any, observer: Any, error: type[BaseException]
) -> None:
    """R3: savepoints that waited are sent at the checkout, which may fail."""

    def interrupt(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("SAVEPOINT"):
            raise error
        return execute(sql, *args)

    def run() -> None:
        with wrapper.execute_wrapper(interrupt), atomic(using=warm), atomic(using=warm):
            add(warm, "undone")

    with pytest.raises(error):
        run()
    assert not is_leased(warm)
    assert committed(observer) == []
    assert_usable(warm, observer)


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_an_error_in_closing_a_cursor_ends_its_hold(
    warm: str, wrapper: Any, observer: Any
) -> None:
    """R3: closing a server-side cursor sends a statement, and its server may be gone."""
    cursor = wrapper.chunked_cursor()
    cursor.execute(ROWS.format(1000))
    pid = cursor.fetchone()[0]
    assert observer.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (
        True,
    )
    with pytest.raises((DatabaseError, psycopg.Error)):
        cursor.close()
    assert wrapper.connection is None
    assert_usable(warm, observer)
    del cursor
    gc.collect()


@pytest.mark.parametrize("error", ERRORS)
def test_any_error_in_closing_a_cursor_ends_its_hold(
    warm: str, wrapper: Any, observer: Any, error: type[BaseException]
) -> None:
    """R3: and so does whatever else the driver's cursor raises."""

    class FailingCursor(psycopg.ClientCursor[Any]):
        def close(self) -> None:
            super().close()
            raise error("by the test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(wrapper), "create_cursor", lambda self, name: failing(self, FailingCursor)
        )
        cursor = wrapper.cursor()
        cursor.execute("SELECT 1")
        with pytest.raises(error):
            cursor.close()
        assert not is_leased(warm)
        with suppress(error), wrapper.cursor():
            pass
        assert not is_leased(warm)
    assert_usable(warm, observer)


def failing(wrapper: Any, cursor_class: Any) -> Any:
    physical = getattr(wrapper.connection, "driver_connection", wrapper.connection)
    return cursor_class(physical)


@pytest.fixture
def _commit_refuses(observer: Any) -> Iterator[None]:
    """Let COMMIT of a row named "refused" fail, as a deferred constraint can."""
    observer.execute(
        """
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'unique_violation'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.name = 'refused') EXECUTE FUNCTION refuse();
        """
    )
    yield
    observer.execute("DROP TRIGGER refuse ON item; DROP FUNCTION refuse()")


@pytest.mark.usefixtures("_commit_refuses")
def test_a_commit_that_fails_releases(warm: str, wrapper: Any, observer: Any) -> None:
    """R3: a constraint that fails at COMMIT has ended the transaction all the same."""
    calls: list[int] = []

    def run() -> None:
        with atomic(using=warm):
            add(warm, "refused")
            transaction.on_commit(lambda: calls.append(1), using=warm)

    with pytest.raises(IntegrityError):
        run()
    assert not is_leased(warm)

    wrapper.set_autocommit(False)
    add(warm, "refused")
    with pytest.raises(IntegrityError):
        wrapper.commit()
    assert not is_leased(warm)
    wrapper.set_autocommit(True)
    assert_usable(warm, observer)
    assert calls == []


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["_commit", "_rollback"])
def test_an_end_that_is_never_sent_leaks_nothing(
    warm: str, wrapper: Any, observer: Any, error: type[BaseException], where: str
) -> None:
    """R3: what stops COMMIT or ROLLBACK leaves a transaction that nobody will end."""

    def run() -> None:
        with atomic(using=warm):
            add(warm, "undone")
            if where == "_rollback":
                raise Undo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(wrapper), where, raiser(error))
        # As in stock, the end of the block may fail for its own reasons on top of that.
        with pytest.raises((error, ProgrammingError)):
            run()
    assert not is_leased(warm)
    assert committed(observer) == []
    assert_usable(warm, observer)


@pytest.mark.parametrize("within", ["nothing", "a block", "nested blocks", "a pin"])
def test_a_connection_that_breaks_is_not_held(
    warm: str, wrapper: Any, observer: Any, within: str
) -> None:
    """R3: a statement whose server is gone fails; the wrapper goes on with another."""

    def run() -> None:
        with ExitStack() as stack:
            if "block" in within:
                stack.enter_context(atomic(using=warm))
            if within == "nested blocks":
                stack.enter_context(atomic(using=warm))
            if within == "a pin":
                stack.enter_context(pin_connection(warm))
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                observer.execute("SELECT pg_terminate_backend(%s, 5000)", cursor.fetchone())
                cursor.execute("SELECT 1")

    with pytest.raises(OperationalError):
        run()
    assert wrapper.connection is None
    assert_usable(warm, observer)
