"""`make_release_backend()`: checks the base class, makes the subclass, names it."""

from __future__ import annotations

import sys
from collections.abc import Collection
from threading import RLock
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper

from .._process.locks import locked
from .lower import LowerLayer
from .wrapper import ConnectionReleaseMixin

W = TypeVar("W", bound=BaseDatabaseWrapper)

#: What Django's abstract wrapper leaves to a backend, and this library builds upon.
_NEEDED = (
    "get_new_connection",
    "get_connection_params",
    "create_cursor",
    "_set_autocommit",
)


def make_release_backend(
    base_wrapper_cls: type[W], *, once_per_connection: Collection[str] = ()
) -> type[W]:
    """Return a subclass of a pooled backend that releases its connection early.

    `base_wrapper_cls` is any Django `DatabaseWrapper` class whose `close()` or
    `_close()` gives the connection back to some pool.  The result behaves like it, but
    checks a connection out at the first cursor, and gives it back when the cursor
    is closed or the transaction has ended.  The same base gives the same class.

    `once_per_connection` names overrides of the base that are about the physical
    connection.  They run for each new one, and at a wrapper's first checkout since
    close(), as with stock.  Without it they run for each lease, to be safe.

    Raises TypeError if that is no wrapper class, or was made here already, and
    ImproperlyConfigured if it is not a complete backend.

    Call it in a module named `base`, as Django looks for `<ENGINE>.base`:

        DatabaseWrapper = make_release_backend(MyPooledWrapper)
    """
    _check_base(base_wrapper_cls)
    # A string is refused as it is, not letter by letter: see `_check_names()`.
    is_string = isinstance(once_per_connection, str)
    once: Any = once_per_connection if is_string else frozenset(once_per_connection)
    module = sys._getframe(1).f_globals.get("__name__", __name__)
    return cast("type[W]", _made.get(base_wrapper_cls, module, once))


class _Made:
    """The classes made of each base, by their `once_per_connection`."""

    def __init__(self) -> None:
        #: See `locked`.  A class's own __init_subclass__() may make another.
        self._lock, self._holder = RLock(), 0
        self._classes: WeakKeyDictionary[type[Any], dict[Any, type[Any]]]
        self._classes = WeakKeyDictionary()

    @locked
    def get(self, base: type[Any], module: str, once: Any) -> type[Any]:
        of_base = self._classes.setdefault(base, {})
        made = of_base.get(once)
        if made is None:
            made = of_base[once] = _make(base, module, once)
        return made


_made = _Made()


def _make(base: type[W], module: str, once: Any) -> type[Any]:
    return type(
        base.__name__,
        (ConnectionReleaseMixin, base, LowerLayer),
        {
            "__module__": module,
            "__qualname__": base.__name__,
            "__doc__": (
                f"{base.__module__}.{base.__qualname__}, releasing its connection as "
                "soon as possible.\n\nMade by django_pg_real_pool.make_release_backend()."
            ),
            **({"once_per_connection": once} if once else {}),
        },
    )


def _check_base(base: Any) -> None:
    wanted = "make_release_backend() needs a Django DatabaseWrapper class"
    if not isinstance(base, type):
        raise TypeError(f"{wanted}, not {base!r}.")
    name = f"{base.__module__}.{base.__qualname__}"
    if issubclass(base, ConnectionReleaseMixin):
        raise TypeError(f"{wanted}, but {name} was already made by make_release_backend().")
    if not issubclass(base, BaseDatabaseWrapper):
        raise TypeError(
            f"{wanted}, a subclass of django.db.backends.base.base.BaseDatabaseWrapper; "
            f"{name} is not one."
        )
    missing = [
        attribute
        for attribute in _NEEDED
        if getattr(base, attribute) is getattr(BaseDatabaseWrapper, attribute)
    ]
    if not hasattr(base, "Database"):
        missing.append("Database")
    if missing:
        raise ImproperlyConfigured(
            f"{wanted} that is complete, but {name} lacks: {', '.join(missing)}."
        )
