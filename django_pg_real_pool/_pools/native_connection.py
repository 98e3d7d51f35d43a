"""The connections of Django's own pool: none is lost, and why there is none is known."""

from __future__ import annotations

import logging
from copy import copy
from typing import Any, ClassVar
from weakref import ref

from .. import _reaper
from .._drivers.psycopg3 import know

logger = logging.getLogger("django_pg_real_pool")


def remembering(connection_class: Any, of_database: str | None = None) -> Any:
    """Return a connection class for one pool, which remembers how connecting went.

    Its connections see to it that the pool gets them back.  An exception that is thrown
    into a thread can hit between any two steps, in the pool's own code too; then nobody
    has the connection, and the pool counts it for ever.  But it is collected.
    """
    from psycopg import Connection

    base = connection_class or Connection

    class Remembering(base):  # type: ignore[misc, valid-type]
        #: A weak reference to the pool; None in a forked child, where it is no pool.
        pool: Any = None
        #: The `NAME` that the settings had when the pool was made.
        database = of_database
        #: Its `_Retries`.
        retries: Any = None
        last_error: BaseException | None = None
        ever_connected = False
        #: All there are, found by weak references.
        made: ClassVar[list[Any]] = []
        #: Whether it is out, or broken and not replaced yet.
        _is_lent = False

        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> Any:
            try:
                connection = super().connect(*args, **kwargs)
            except Exception as error:
                cls.last_error = copy(error)  # without the frames that it went through
                raise
            cls.last_error = None
            cls.ever_connected = True
            know(connection)
            cls.made.append(ref(connection, cls.made.remove))
            if cls.retries is not None:
                cls.retries.hurry()
            return connection

        @classmethod
        def count_lent(cls) -> int:
            found = [each() for each in list(cls.made)]
            return sum(each is not None and each._is_lent for each in found)

        def __del__(self) -> None:
            find, was_pooled = type(self).pool, hasattr(self, "_expire_at")
            pool = find() if find is not None else None
            # A pool closes what it lets go of, so this was lost if it is open.
            if (
                pool
                and not pool.closed
                and was_pooled
                and (self._is_lent or not self.closed)
            ):
                _reaper.run_soon(lambda: _give_back_lost(pool, self))
            else:
                super().__del__()

    Remembering.__name__ = base.__name__
    Remembering.__qualname__ = base.__qualname__
    Remembering.__module__ = base.__module__
    return Remembering


def _give_back_lost(pool: Any, connection: Any) -> None:
    """Let the pool replace a connection that an interrupted thread has lost."""
    logger.warning(
        "a thread was interrupted while it got a connection from %r or gave it back: "
        "the connection is replaced",
        pool.name,
    )
    connection.close()  # whatever it was in the middle of
    connection._pool = pool
    pool.putconn(connection)


def remembering_connect(pool: Any) -> Any:
    """Return a pool's `_connect()` that remembers also what failed after connecting.

    The pool configures a connection before anybody can have it: a role that is not
    there is a reason why there is none, as a wrong password is.
    """
    connect, find, connecting = type(pool)._connect, ref(pool), pool.connection_class

    def remember(*args: Any, **kwargs: Any) -> Any:
        before = connecting.ever_connected
        try:
            return connect(find(), *args, **kwargs)
        except Exception as error:
            connecting.last_error, connecting.ever_connected = copy(error), before
            raise

    return remember
