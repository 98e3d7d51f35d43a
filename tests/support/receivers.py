"""Receivers of `connection_created` for one alias, for as long as a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db.backends.signals import connection_created

Receiver = Callable[[Any], None]


@contextmanager
def receiving(alias: str, *receivers: Receiver) -> Iterator[list[Any]]:
    """Call receivers when a wrapper of `alias` sends the signal; note each signal."""
    heard: list[Any] = []

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            heard.append(connection)
            for receiver in receivers:
                receiver(connection)

    connection_created.connect(receive)
    try:
        yield heard
    finally:
        connection_created.disconnect(receive)
