"""Looks at sockets: is there anything to be read?  And cuts them off, after a fork.

An idle connection has nothing to read.  If there is something, it was closed, or must be
looked at.  This is asked before each query.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any


def peeker(file: int) -> Callable[[], Any]:
    """Return a function that tells at once whether `file` can be read, or is closed.

    It keeps the GIL.  select.poll() releases it, and another thread takes it, in each
    query: with four busy threads that cost a seventh of the throughput.
    """
    try:
        import ctypes

        poll = ctypes.PyDLL(None).poll
    except (ImportError, AttributeError, OSError, TypeError):  # not a POSIX system
        return partial(waiter(file), 0.0)
    # struct pollfd: an int, and two shorts, of which the second is the answer.  Each connection
    # has its own, and only the thread that has the connection asks.
    events = select.POLLIN | select.POLLPRI
    asked = (ctypes.c_short * 4)()
    ctypes.cast(asked, ctypes.POINTER(ctypes.c_int))[0] = file
    asked[2] = events
    return partial(poll, asked, 1, 0)  # it keeps `asked` alive


def waiter(file: int) -> Callable[[float], Any]:
    """Return a function that waits, given seconds, until `file` can be read.

    It returns something true if so.
    """
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLPRI)
        return lambda seconds: poll.poll(seconds * 1000)
    return partial(_wait_by_select, file)


def _wait_by_select(file: int, seconds: float) -> Any:
    try:
        return select.select([file], [], [], seconds)[0]
    except (OSError, ValueError):  # closed; poll() answers, and whoever reads next finds it
        return True


def shut_down(file: int) -> None:
    """End a connection in both directions; its number stays taken, unlike by close()."""
    with socket.socket(fileno=os.dup(file)) as same:
        same.shutdown(socket.SHUT_RDWR)


def cut(files: list[int]) -> None:
    """Replace each of these by a socket whose other end is closed."""
    nobody, deaf = socket.socketpair()
    nobody.close()
    with deaf:
        for file in files:
            with suppress(OSError):  # it is closed
                os.dup2(deaf.fileno(), file, inheritable=False)
