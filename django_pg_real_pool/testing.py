"""A kit for the tests of projects that use this library.

As context managers, or as pytest fixtures of the same purpose once a conftest.py says
`pytest_plugins = ["django_pg_real_pool.testing"]`:

- `different_connections()` / `real_pool_different_connections`: each checkout gets
  another physical connection, so that code which silently relies on session state fails.
- `no_leases()` / `real_pool_no_leases`: code that leaves a connection checked out
  fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections

from ._api import ConnectionHeldError
from ._backend.wrapper import ConnectionReleaseMixin
from ._process import registry
from ._process.locks import locked


@contextmanager
def different_connections(using: str | None = None) -> Iterator[None]:
    """Let no wrapper of an alias get the same physical connection twice in a row.

    `using` is the database alias (None: "default"), in all threads.  Its pool must
    have room for two connections; if there is no second one, the checkout
    raises what the exhausted pool raises.  A lease that exists already goes on.
    """
    alias = using or DEFAULT_DB_ALIAS
    made = type(connections[alias])
    if not issubclass(made, ConnectionReleaseMixin):
        raise ImproperlyConfigured(
            f"different_connections() can't answer for the database alias {alias!r}: its "
            "ENGINE does not release early."
        )
    before = made._hooks
    rotating: Any = _Rotating(before.pool, alias)
    _use(made, replace(before, pool=rotating))
    try:
        yield
    finally:
        _use(made, before)


def _use(made: Any, hooks: Any) -> None:
    """Give a class, and each wrapper of it, other hooks."""
    made._hooks = hooks
    for lease in registry.leases():
        if type(lease.wrapper) is made:
            lease.hooks = hooks


class _Rotating:
    """A pool adapter that gives a wrapper another connection each time."""

    def __init__(self, pool: Any, alias: str) -> None:
        self._pool = pool
        self._alias = alias
        self._last: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        #: Only one thread at a time may hold one connection and wait for another, and
        #: nobody may wait for this with a connection that the former waits for.  See `locked`.
        self._lock, self._holder = RLock(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def take(self, session: Any) -> Any:
        if session.wrapper.alias != self._alias:
            return self._pool.take(session)
        return self._take_another(session)

    @locked
    def _take_another(self, session: Any) -> Any:
        wrapper = session.wrapper
        connection = self._pool.take(session)
        if id(self._pool.physical(connection)) == self._last.get(wrapper):
            # The pool must not take the first for one that was lost.
            same = wrapper.connection = connection
            try:
                connection = self._pool.take(session)
            finally:
                wrapper.connection = same
                self._pool.put(session)
        self._last[wrapper] = id(self._pool.physical(connection))
        return connection


@contextmanager
def no_leases() -> Iterator[None]:
    """Raise ConnectionHeldError if the block leaves a connection checked out.

    It looks at every thread and alias of this process that releases early.  A lease
    that was there before, such as that of a surrounding `TestCase`, does not count.
    """
    before = _leased()
    yield
    left = {who: lease for who, lease in _leased().items() if who not in before}
    if left:
        described = "; ".join(
            f"alias {alias!r}: {', '.join(holds) or 'no hold'}"
            for (_, alias), holds in left.items()
        )
        raise ConnectionHeldError(f"a connection is still checked out: {described}")


def _leased() -> dict[tuple[int, str], list[str]]:
    return {
        (id(lease), lease.alias): lease.holds.describe()
        for lease in registry.leases()
        if lease.is_held
    }


try:
    import pytest
except ImportError:
    pass
else:

    @pytest.fixture
    def real_pool_different_connections() -> Iterator[None]:
        """`different_connections()` for each alias that releases early."""
        with ExitStack() as stack:
            for wrapper in connections.all():
                if isinstance(wrapper, ConnectionReleaseMixin):
                    stack.enter_context(different_connections(wrapper.alias))
            yield

    @pytest.fixture
    def real_pool_no_leases() -> Iterator[None]:
        """`no_leases()` for the test."""
        with no_leases():
            yield
