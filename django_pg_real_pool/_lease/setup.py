"""Makes of a connection what stock's connect() would have made of it."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from time import monotonic
from typing import Any

from django.db.backends.signals import connection_created

from .._drivers import PERHAPS, RENEW, TOUCHED, Heard, Statement, text_of
from .._process.locks import T, with_undo
from .._session import only_writes_rows
from .._settings import SessionPolicy
from . import giving_back, transactions
from .facts import TRANSACTION_STATE, Debt, Phase, Transaction
from .rule import Hold

logger = logging.getLogger("django_pg_real_pool")


def reset_transaction_state(wrapper: Any) -> None:
    for name, initial in TRANSACTION_STATE.items():
        setattr(wrapper, name, initial())


# ##### Whether the connection can be used at all, and what it has yet to hear #####


def set_up(lease: Any) -> None:
    """Check the connection; set it up if it has not heard what this session's must hear.

    On return the lease has one that can be used, perhaps another one.
    """
    is_done = False
    while not is_done:
        _replace_if_gone(lease)
        driver, physical = lease.hooks.driver, lease.physical
        heard, announce = driver.heard(physical), True
        if heard is not None and heard == lease.heard:
            driver.mark_heard(physical, lease.heard)  # compared by identity from here on
            announce = False
        is_done = True
        if announce or lease.hooks.init_every_time:
            try:
                is_done = outside_transaction(lease, partial(_set_up, lease, announce))
            except BaseException:
                # Something was set, perhaps, before something else raised.
                driver.forget_set_up(physical)
                lease.owe(Debt.CLEANING)
                raise
            transactions.end_transaction_of_set_up(lease)


def _replace_if_gone(lease: Any) -> None:
    hooks = lease.hooks
    rejected: Any = None
    while True:
        if lease.wrapper.connection is None:
            lease.get()
        physical = lease.physical
        if physical is rejected or hooks.driver.is_usable(
            physical, lease.options.check_after_idle
        ):
            # The same again: this pool does not notice that it was closed.
            return
        rejected = physical
        logger.info(
            "a connection of database alias %r was closed by the server or on the "
            "way, so it is replaced",
            lease.alias,
        )
        lease.is_rejected = True
        _replace(lease)


def _replace(lease: Any) -> None:
    giving_back.end(lease, discard=True)
    lease.phase = Phase.TAKING


def _set_up(lease: Any, announce: bool) -> bool:
    """Do the rest of stock's connect() with the connection that is there.

    What is sent meanwhile is the connection's configuration.  What receivers send is noted,
    because it may be of this request: its user, its tenant.  Returns False, and the lease
    has no connection then, where this one can't be made to be of this request alone.
    """
    driver, physical = lease.hooks.driver, lease.physical
    before = driver.heard(physical)
    if before == RENEW:
        return _set_up_clean(lease)
    _initialise(lease, announce)
    if not announce:
        driver.mark_set_up(physical, before or ())
        return True
    driver.restore(physical)
    if before is None:
        driver.mark_set_up(physical, ())  # what a cleaning is to lead back to
    noted: list[Statement] = []
    noting(lease, noted, lambda: _announce(lease.wrapper))
    heard: Heard = (*noted, *driver.touches(physical))
    if before and before != heard and not _sets_all_of(heard, before):
        # What was set then and not set now is of another request, perhaps.
        return _set_up_clean(lease)
    if lease.heard is not None and lease.heard != heard:
        # Receivers say something else by now, but the session goes on as it began.  If
        # that can't be said again, this stands: they speak of this request, too.
        if _can_be_said(lease.heard, instead_of=heard):
            if not _say_again(lease, lease.heard, instead_of=heard):
                if before is None:
                    lease.heard = _UNSPEAKABLE  # not even to one that is new
                _replace(lease)
                return False
            heard = lease.heard
    elif lease.heard is not None:
        heard = lease.heard  # the same object: it is compared by identity
    elif before == heard:
        heard = before or ()
    if before is None or lease.hooks.init_every_time or connection_created.receivers:
        # Whatever they made of it is how it is to be after a cleaning.
        driver.mark_set_up(physical, heard)
    else:
        driver.mark_heard(physical, heard)
    lease.heard = heard
    return True


def _set_up_clean(lease: Any) -> bool:
    if _clean(lease):
        return _set_up(lease, announce=True)
    _replace(lease)
    return False


def _clean(lease: Any) -> bool:
    """Clean the session; a base that remembers what it has set on it is to forget that.

    Return False if that was not possible: the connection is to be replaced.
    """
    if not giving_back.clean(lease):
        return False
    if not lease.hooks.close:
        return True
    bring_back = partial(setattr, lease.wrapper, "connection", lease.wrapper.connection)
    return with_undo(partial(giving_back.let_base_forget, lease), bring_back)


def _announce(wrapper: Any) -> None:
    connection_created.send(sender=wrapper.__class__, connection=wrapper)


def _initialise(lease: Any, announce: bool) -> None:
    """Do what stock's connect() does before it sends connection_created."""

    def initialise() -> None:
        if announce:
            lease.wrapper.check_settings()
            lease.hooks.pool.introduce(lease)
        apply_autocommit(lease)
        lease.wrapper.init_connection_state()

    noting(lease, [], initialise)


#: What no connection has heard, and can't be said.
_UNSPEAKABLE: Heard = ((PERHAPS, object()),)


def _can_be_said(said: Heard, instead_of: Heard) -> bool:
    """Return whether it is certain that statements set again what they have set."""
    return all(map(_can_be_repeated, filter(_may_set, said))) and (
        _touches(said) == _touches(instead_of)
    )


def _say_again(lease: Any, said: Heard, instead_of: Heard) -> bool:
    """Let the session be as `said` has set it; return whether it is."""
    if not _sets_all_of(said, instead_of):
        if not _clean(lease):
            return False
        _initialise(lease, announce=True)
    try:
        lease.hooks.driver.say(lease.physical, tuple(filter(_may_set, said)))
    except lease.hooks.failures:
        return False
    return True


#: A statement that sets one thing, whose name is certain ...
_SET = re.compile(
    r"\s*set\s+(?:session\s+)?([\w.]+)\s*(?:=|to\s)[^;]*;?\s*\Z", re.IGNORECASE
)
#: ... and one that does nothing but to set some.
_CONFIG = (
    r"(?:pg_catalog\.)?set_config\s*\(\s*'([^'\\]+)'\s*,"
    r"\s*(?:%s|%\(\w+\)s|'[^'\\]*')(?:::text)?\s*,"
    r"\s*(?:false|'f(?:alse)?')\s*\)(?:\s+as\s+\w+)?"
)
_CONFIGS = re.compile(
    rf"\s*select\s+{_CONFIG}(?:\s*,\s*{_CONFIG})*\s*;?\s*\Z", re.IGNORECASE
)
#: One that calls no function, so it sets nothing: it looks a type up, say, and only once.
_READ = re.compile(r"\s*select\s(?!.*\binto\b)[^(;]*;?\s*\Z", re.IGNORECASE | re.DOTALL)
_CONFIG_NAME = re.compile(r"set_config\s*\(\s*'([^'\\]+)'", re.IGNORECASE)


def _sets_all_of(now: Heard, before: Heard) -> bool:
    """Return whether statements set all that others had set, even if to other values."""
    return _what_is_set(before) <= _what_is_set(now)


def _what_is_set(heard: Heard) -> set[str]:
    """Return what statements set, without the value where its name is certain."""
    found: set[str] = set()
    for sql, params in filter(_may_set, heard):
        text = text_of(sql)
        if match := _SET.match(text):
            found.add(match.group(1).lower())
        elif _CONFIGS.match(text):
            found.update(name.lower() for name in _CONFIG_NAME.findall(text))
        else:
            found.add(f"{text} {params!r}")
    return found


def _may_set(said: Statement) -> bool:
    """Return whether a statement may set something.

    Attributes are undone before the receivers are sent.  What writes a row may call a
    function that sets something, or write into a temporary table.
    """
    text = text_of(said[0]).removeprefix(PERHAPS)
    return not (text == TOUCHED or _READ.match(text))


def _can_be_repeated(said: Statement) -> bool:
    """Return whether a statement can be said again; a row must not be written twice."""
    text = text_of(said[0])
    return not (text.startswith(PERHAPS) or only_writes_rows(text))


def _touches(heard: Heard) -> list[Statement]:
    return [said for said in heard if said[0] == TOUCHED]


def make_base_cursor(lease: Any, make: Callable[[], Any]) -> Any:
    """Call a base's own `_cursor()`, and undo what it has set for another lease, if need be.

    It sends the same for each cursor anew, or once for a lease, until its `close()`.  So
    nothing need be undone, unless the next lease does not set the same.
    """
    if not lease.has_connection():
        lease.take()
    noted: list[Statement] = []
    listened_to = lease.physical
    try:
        cursor = noting(lease, noted, make, in_block=True)
        if lease.physical is not listened_to:
            lease.owe(Debt.CLEANING)  # the base has reconnected: not all of it was heard
    except BaseException:
        lease.owe(Debt.CLEANING)  # what it has set by then
        raise
    sent = tuple(noted)
    if lease.sent_by_base is None:  # in this lease it is the first
        before = lease.hooks.driver.sent_by_base(lease.physical)
        if before and not _sets_all_of(sent, before):
            _begin_anew(lease, sent)
    lease.sent_by_base = (*(lease.sent_by_base or ()), *sent)
    return cursor


def forget_other_base(lease: Any) -> None:
    """Undo what a base's own `_cursor()` has set for another lease; this one has made none.

    What comes next is sent by hand, through the driver's connection, so it may make none.
    """
    if (
        lease.options.session_state is not SessionPolicy.IGNORE
        and lease.sent_by_base is None
        and lease.physical is not None
        and lease.transaction is Transaction.NONE
        and Hold.CURSOR not in lease.holds.now
        and lease.hooks.driver.sent_by_base(lease.physical)
    ):
        _begin_anew(lease, ())
        lease.sent_by_base = ()


def _begin_anew(lease: Any, sent: Heard) -> None:
    """Clean the session under a cursor that a base has made; set again what it has set.

    The base has no reason to set it once more.  What has failed has set nothing.
    """
    driver, physical = lease.hooks.driver, lease.physical
    driver.note_sent_by_base(physical, ())
    to_say = tuple(said for said in sent if _can_be_repeated(said) and _may_set(said))

    def begin_anew() -> bool:
        if not (giving_back.clean(lease) and _set_up_again(lease)):
            return False
        with lease.wrapper.wrap_database_errors:
            driver.say(physical, to_say)
        return True

    has_begun = False
    try:
        if outside_transaction(lease, begin_anew):
            apply_autocommit(lease)
            has_begun = True
    finally:
        if not has_begun:
            driver.end(physical)  # nobody may use it as it is


def _set_up_again(lease: Any) -> bool:
    """Set a session up that was cleaned since it was announced; announce it only if need be.

    Receivers have heard of this connection already.  What they have sent is said again.
    """
    driver, physical, heard = lease.hooks.driver, lease.physical, lease.heard
    if heard is None or not _can_be_said(heard, instead_of=heard):
        return _set_up(lease, announce=True)
    _initialise(lease, announce=True)
    with lease.wrapper.wrap_database_errors:
        driver.say(physical, tuple(filter(_may_set, heard)))
    driver.mark_set_up(physical, heard)
    return True


def noting(
    lease: Any, noted: list[Statement], do: Callable[[], T], in_block: bool = False
) -> T:
    """Return what `do` returns, having noted the statements that it sends: see `listen()`."""
    before = lease.noting

    def listen_and_do() -> T:
        lease.noting = noted
        if lease.physical is None:
            return do()
        driver = lease.hooks.driver
        return driver.listen(lease.physical, noted, do, in_block)  # type: ignore[no-any-return]

    def stop() -> None:
        lease.noting = before

    return with_undo(listen_and_do, stop)


# ##### Where the wrapper is #####


def bring_up_to_date(lease: Any) -> None:
    """Bring a connection to the wrapper's mode and savepoints."""
    apply_autocommit(lease)
    send_savepoints(lease)
    lease.holds.since = monotonic()


def apply_autocommit(lease: Any) -> None:
    wrapper = lease.wrapper
    if lease.hooks.driver.autocommit(lease.physical) is not wrapper.autocommit:
        wrapper._set_autocommit(wrapper.autocommit)


def outside_transaction(lease: Any, do: Callable[[], T]) -> T:
    """Return what `do` returns, in the state of a wrapper that has just connected.

    A connection may be taken inside a block, but what sets it up, receivers of
    connection_created included, must not become a part of the transaction.  Nor may
    tools see it that count, log or forbid queries now: for all but the first connection
    since close(), stock would have done it long ago.
    """
    wrapper, is_first = lease.wrapper, lease.heard is None
    if (
        is_first
        and not wrapper.in_atomic_block
        and wrapper.autocommit is lease.default_autocommit
    ):
        return do()
    names = [*TRANSACTION_STATE, "autocommit"]
    if not is_first:
        names += ["queries_log", "execute_wrappers"]
    saved = {name: getattr(wrapper, name) for name in names}
    unsent, is_off_by_atomic = lease.unsent_savepoints, lease.is_off_by_atomic
    use = lease.use
    # With AUTOCOMMIT False stock has set up one connection in that mode; what comes later is
    # in the user's, or what is sent now would begin a transaction that nobody ends.
    is_on = lease.default_autocommit or (not is_first and _is_on(lease))

    def put_aside_and_do() -> T:
        if not is_first:
            wrapper.queries_log, wrapper.execute_wrappers = deque(maxlen=0), []
        lease.unsent_savepoints = []
        reset_transaction_state(wrapper)
        wrapper.autocommit = is_on
        return do()

    def bring_back() -> None:
        lease.unsent_savepoints, lease.is_off_by_atomic = unsent, is_off_by_atomic
        lease.use = use  # who connects may have closed: block and mode go on
        for name, value in saved.items():
            setattr(wrapper, name, value)

    return with_undo(put_aside_and_do, bring_back)


def _is_on(lease: Any) -> bool:
    """Return whether autocommit is on, but for a block."""
    return lease.wrapper.autocommit or bool(lease.is_off_by_atomic)


def without_block(lease: Any, do: Callable[[], T]) -> T:
    """Return what `do` returns, outside the block, but in the user's mode of autocommit.

    A connection that it leaves in a transaction is brought to the block.
    """
    is_on = _is_on(lease)

    def set_mode_and_do() -> T:
        lease.wrapper.autocommit = is_on
        return do()

    found = outside_transaction(lease, set_mode_and_do)
    lease.with_connection(partial(bring_up_to_date, lease))
    return found


def send_savepoints(lease: Any) -> None:
    """Send the savepoints of the open blocks, as they would have been sent.

    Tools that watch the wrapper, its cursors or their class see them.
    """
    unsent, wrapper = lease.unsent_savepoints, lease.wrapper
    if not unsent:
        return
    wrappers_now, is_broken = wrapper.execute_wrappers, wrapper.needs_rollback

    def send() -> None:
        lease.unsent_savepoints = []
        for sid, wrappers in unsent:
            wrapper.execute_wrappers, wrapper.needs_rollback = wrappers, False
            # Through an ordinary cursor: what a base does when it makes one (a SET,
            # say) comes before the savepoint, as in stock, and survives it.
            with wrapper.cursor() as cursor:
                cursor.debug_sql = _was_logged
                cursor.execute(wrapper.ops.savepoint_create_sql(sid))

    def bring_back() -> None:
        wrapper.execute_wrappers, wrapper.needs_rollback = wrappers_now, is_broken

    try:
        with_undo(send, bring_back)
    except BaseException:
        lease.unsent_savepoints = unsent
        raise


def _was_logged(*args: Any, **kwargs: Any) -> Any:
    """Replace a debug cursor's logging: this was logged when it was asked for."""
    return nullcontext()
