"""Pins, and connections that user code has asked for by hand: methods of `Lease`."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Any

from django.utils.asyncio import async_unsafe

from .._process.locks import locked
from .._process.origins import find_origin
from .._settings import SessionPolicy
from . import keeping, setup, transactions
from .facts import Debt
from .rule import Event

CLEANING = Debt.CLEANING


@async_unsafe
def pin(lease: Any, token: Hashable, is_own: bool = False) -> None:
    """Hold the lease until `unpin(token)`; take a connection if need be.

    A token is anything that can be referred to weakly.  A user's pin ends with a clean session, because nobody sees what is done through
    the driver.  One that `is_own`, of this library, owes nothing.
    """
    lease.wrapper.validate_thread_sharing()
    if not lease.begin():
        lease.wrapper.ensure_connection()  # without a pool it is kept anyway
        return
    _pin(lease, token, is_own)


@locked
def _pin(lease: Any, token: Hashable, is_own: bool) -> None:
    keeping.once_secure(lease, lease.take, partial(_note_pin, lease, token, is_own))
    if lease.options.track_origins:
        lease.holds.origins[token] = find_origin()


def _note_pin(lease: Any, token: Hashable, is_own: bool) -> None:
    if is_own:
        lease.own_pins.add(token)
        lease._look_at_driver_side()
    else:
        lease.open_pins.add(token)
        setup.forget_other_base(lease)
        owe_for_hand(lease)
    lease.holds.happened(Event.PIN_ENTERED, token)


def owe_for_hand(lease: Any) -> None:
    """Let the session be cleaned, because nobody sees what the user does by hand."""
    if lease.options.session_state is not SessionPolicy.IGNORE:
        lease.owe(CLEANING)


@locked
def unpin(lease: Any, token: Hashable) -> None:
    driver = lease.hooks.driver
    try:
        if (
            token in lease.own_pins
            and lease.physical is not None
            and driver.has_new_types(lease.physical)
        ):
            # Registered with one connection, after an extension was made, say.
            driver.snapshot(lease.physical)
            driver.forget_others(lease.physical)
    finally:
        lease.own_pins.discard(token)
        lease.open_pins.discard(token)
        lease.holds.happened(Event.PIN_LEFT, token)
        lease._settle()


@locked
def connected(lease: Any, is_kept: bool) -> None:
    """Begin the lease that user code has asked for by `connect()`."""
    transactions.refuse_if_lost(lease)
    keeping.once_secure(lease, lease.open, partial(_note_connect, lease, is_kept))
    lease._settle()


def _note_connect(lease: Any, is_kept: bool) -> None:
    if is_kept:
        setup.forget_other_base(lease)
        owe_for_hand(lease)  # as under a pin: it is as deliberate
        lease.holds.happened(Event.CONNECTED)
