"""What a lease notes of a statement that is about to be sent: methods of `Lease`.

Most statements never come here.  A cursor calls these for the first of a transaction, for
one that changes its session, and while a connection is set up.
"""

from __future__ import annotations

from typing import Any

from django.db import NotSupportedError

from .._drivers import statement
from .._process.locks import locked
from .._session import BEYOND_RESET
from .._settings import SessionPolicy
from . import transactions
from .facts import Debt, Phase, Use
from .rule import Event, Hold

# Each transaction needs these: before Python 3.12, to look a member up is slow.
CURSOR, POOLED = Hold.CURSOR, Use.POOLED
_GOING = (Phase.RETURNING, Phase.CLOSING)


class SessionStateError(NotSupportedError):
    """Raised by policy "error" for a statement that would change the session.

    The statement was not sent.
    """


@locked
def before_statement(lease: Any, raw: Any) -> None:
    """Note that a statement begins a transaction, or that one has begun already.

    This comes before it is sent: if the connection dies of it, so does the transaction.
    """
    if lease.use is not POOLED or lease.physical is None or lease.phase in _GOING:
        return  # what a base's own close() sends belongs to no block
    if raw is not None and id(raw) not in lease.holds.now.get(CURSOR, ()):
        return  # of an earlier lease: it will refuse by itself
    autocommit = lease.wrapper.autocommit
    if not autocommit or transactions.is_in_transaction(lease):
        transactions.began(lease)


@locked
def unseen_statement(lease: Any) -> None:
    """Note a statement of a cursor that is not ours, of which nothing is known.

    A tool may have built one of Django's own around the driver's cursor.
    """
    if lease.phase is Phase.HELD and lease.noting is None and lease.use is POOLED:
        lease.before_statement(None)
        if lease.options.session_state is not SessionPolicy.IGNORE:
            lease.owe(Debt.CLEANING)


def note(lease: Any, sql: Any, params: Any, raw: Any) -> None:
    """Note a statement that belongs to the connection, not to the user."""
    if lease.noting is not None and lease.is_within and not lease.hooks.driver.hears(raw):
        lease.noting.append(statement(sql, params, raw))


def session_changes(lease: Any, change: str, raw: Any) -> None:
    """Hold the session that a cursor's statement is about to change, or refuse."""
    policy = lease.options.session_state
    if policy is SessionPolicy.IGNORE:
        return
    if lease.noting is not None and lease.is_within and lease.wrapping <= 1:
        return  # it sets the connection up; what an execute wrapper sends does not
    if lease.use is not POOLED or lease.phase in _GOING:
        return  # a base's own close() may leave the connection as it likes
    is_pinned = lease.is_pinned
    if policy is SessionPolicy.ERROR and not is_pinned:
        raise SessionStateError(
            f"{change} would change the session of database alias {lease.alias!r} "
            "beyond its transaction, but the connection is released after the "
            "statement. Use SET LOCAL, set_config(..., true) or a "
            "pg_advisory_xact_lock() function inside atomic(); or wrap the work in "
            "pin_connection(); or set "
            f"DATABASES[{lease.alias!r}]['RELEASE_OPTIONS']['SESSION_STATE'] to 'pin'."
        )
    _session_changes(lease, change, is_pinned)


@locked
def _session_changes(lease: Any, change: str, is_pinned: bool) -> None:
    # A cursor that is not known may be a proxy of one that is, or be built by a tool.
    # If its lease has ended, it will refuse by itself.
    if lease.wrapper.connection is None:
        return
    lease.owe(Debt.REPLACEMENT if change in BEYOND_RESET else Debt.CLEANING)
    if not is_pinned:
        lease.holds.happened(Event.SESSION_CHANGED)
