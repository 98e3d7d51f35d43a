"""The smallest pooler of PostgreSQL connections that a check can take for one.

It answers a client's login by itself, with a process number of its own making, and lets
the client's simple queries be answered by one of its own connections.  What PgBouncer
itself does is tested in `neighbours/test_with_pgbouncer.py`.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from tcp_proxy import connect

#: No process has this number.
PROCESS = -7


def message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("!i", len(content) + 4) + content


def read(source: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = source.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def read_message(source: socket.socket) -> bytes:
    head = read(source, 5)
    return head + read(source, struct.unpack_from("!i", head, 1)[0] - 4)


def read_startup(client: socket.socket) -> bytes:
    """Read a startup packet, declining to encrypt."""
    while True:
        head = read(client, 4)
        content = read(client, struct.unpack("!i", head)[0] - 4)
        if content[:2] != struct.pack("!h", 1234):
            return head + content
        client.sendall(b"N")


class SmallPooler:
    """A pooler with `size` connections, which are shared if it is one of transactions."""

    def __init__(self, size: int, are_shared: bool, pause: float = 0.0) -> None:
        #: Seconds before the last message of each answer.
        self._pause = pause
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._are_shared = are_shared
        self._free = threading.BoundedSemaphore(size)
        self._idle: list[socket.socket] = []
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        for each in (self._listener, *self._clients):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._idle):
            each.close()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=[client], daemon=True)
                self._clients.append(client)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(EOFError, OSError):
            startup = read_startup(client)
            if b"\0options\0" in startup:
                client.sendall(message(b"E", b"SFATAL\0C08P01\0Mnot these options\0\0"))
                return
            key = message(b"K", struct.pack("!ii", PROCESS, 0))
            client.sendall(message(b"R", bytes(4)) + key + message(b"Z", b"I"))
            while self._are_shared:
                query = self._next_query(client)
                with self._server(startup) as server:
                    self._answer(client, server, query)
            query = self._next_query(client)
            with self._server(startup) as server:
                while True:
                    self._answer(client, server, query)
                    query = self._next_query(client)

    def _next_query(self, client: socket.socket) -> bytes:
        query = read_message(client)
        if query[:1] == b"X":
            raise EOFError
        return query

    @contextmanager
    def _server(self, startup: bytes) -> Iterator[socket.socket]:
        with self._free:
            server = self._idle.pop() if self._idle else None
            if server is None:
                server = connect(os.environ["PGHOST"], int(os.environ["PGPORT"]))
                server.sendall(startup)
                while read_message(server)[:1] != b"Z":
                    pass
            try:
                yield server
            finally:
                self._idle.append(server)

    def _answer(self, client: socket.socket, server: socket.socket, query: bytes) -> None:
        server.sendall(query)
        answer = b""
        while answer[:1] != b"Z":
            answer = read_message(server)
            if answer[:1] == b"Z":
                time.sleep(self._pause)
            client.sendall(answer)


@contextmanager
def pooler_of_transactions() -> Iterator[int]:
    """Yield the port of a pooler whose clients share one connection."""
    with closing(SmallPooler(size=1, are_shared=True)) as pooler:
        yield pooler.port


@contextmanager
def pooler_of_sessions(size: int) -> Iterator[int]:
    """Yield the port of a pooler of which each client gets a connection of its own."""
    with closing(SmallPooler(size, are_shared=False)) as pooler:
        yield pooler.port
