"""A TCP proxy before a PostgreSQL server that counts what passes, and cuts it at will.

In a test: `with closing(Proxy(host, port)) as proxy: ...`.  As a program of its own,
`python tcp_proxy.py HOST PORT`, it prints its port and obeys the names of methods that
it reads from its standard input, one a line: `drop`, `half_close`, `black_hole`, ...
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from selectors import EVENT_READ, DefaultSelector
from typing import Any

#: A startup packet has no type byte; it is counted as this.
STARTUP = "startup"
#: Each message of one of these types asks for one answer: it is a round trip.
ROUND_TRIPS = ("Q", "S")

_CHUNK = 65536


def connect(host: str, port: int) -> socket.socket:
    """Connect as libpq does: `host` may be the directory of a Unix socket."""
    if host.startswith("/"):
        unix = socket.socket(socket.AF_UNIX)
        unix.connect(f"{host}/.s.PGSQL.{port}")
        return unix
    return socket.create_connection((host, port))


class Link:
    """One client's connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        #: Everything that the client sent.
        self.bytes_to_server = 0
        self.bytes_to_client = 0
        #: How many messages of each type the client sent, by their type letter.
        self.messages: Counter[str] = Counter()
        #: Takes no more data from either side; both stay open, as behind a firewall.
        self.is_black_hole = False
        self._unparsed = b""
        self._has_started = False

    @property
    def round_trips(self) -> int:
        return sum(self.messages[kind] for kind in ROUND_TRIPS)

    def count(self, data: bytes) -> None:
        """Count the messages in what the client sent."""
        self.bytes_to_server += len(data)
        self._unparsed += data
        while True:
            start = 1 if self._has_started else 0
            if len(self._unparsed) < start + 4:
                return
            (length,) = struct.unpack_from("!i", self._unparsed, start)
            if len(self._unparsed) < start + length:
                return
            kind = chr(self._unparsed[0]) if self._has_started else STARTUP
            self._unparsed = self._unparsed[start + length :]
            self._has_started = True
            self.messages[kind] += 1

    def close(self) -> None:
        self.client.close()
        self.server.close()


class Proxy:
    """A proxy on a port of its own, served by one thread.

    Its switches concern the links that there are (`drop`, `half_close`, `black_hole`)
    or those that come (`refuse`, `swallow`).
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        #: Every link there ever was, oldest first.
        self.links: list[Link] = []
        #: Seconds that each piece of data waits, in both directions.
        self.delay = 0.0
        #: New clients are hung up on.
        self.is_refusing = False
        #: New clients get no answer at all.
        self.is_swallowing = False
        self._open: set[Link] = set()
        self._lock = threading.RLock()
        self._selector = DefaultSelector()
        self._selector.register(self._listener, EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, EVENT_READ)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on everybody and stop."""
        self._is_closing = True
        self._wake.send(b"x")
        self._thread.join()
        self.drop()
        for each in (self._listener, self._wake, self._woken):
            each.close()
        self._selector.close()

    # ##### What was seen #####

    @property
    def open_links(self) -> list[Link]:
        with self._lock:
            return [link for link in self.links if link in self._open]

    @property
    def round_trips(self) -> int:
        with self._lock:
            return sum(link.round_trips for link in self.links)

    def messages(self) -> Counter[str]:
        """Return how many messages of each type all clients sent."""
        with self._lock:
            total: Counter[str] = Counter()
            for link in self.links:
                total += link.messages
            return total

    # ##### Faults #####

    def drop(self) -> None:
        """Cut every link at once, with a reset instead of a farewell."""
        with self._lock:
            for link in list(self._open):
                for each in (link.client, link.server):
                    if each.family != socket.AF_UNIX:
                        linger = struct.pack("ii", 1, 0)
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self._end(link)

    def half_close(self) -> None:
        """Say to every client that nothing more will come; go on listening to it."""
        with self._lock:
            for link in self._open:
                link.client.shutdown(socket.SHUT_WR)

    def black_hole(self) -> None:
        """Let every link that there is go silent, without closing it."""
        with self._lock:
            for link in self._open:
                link.is_black_hole = True
                self._unregister(link)

    def refuse(self) -> None:
        """Hang up on whoever connects, from now on."""
        self.is_refusing = True

    def swallow(self) -> None:
        """Accept whoever connects, and never answer."""
        self.is_swallowing = True

    def accept(self) -> None:
        """Serve whoever connects, as at the beginning."""
        self.is_refusing = self.is_swallowing = False

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Serve nobody until the block ends; then all that has come meanwhile."""
        with self._lock:
            yield

    def slow(self) -> None:
        """Let each piece of data wait for 20 ms."""
        self.delay = 0.02

    def fast(self) -> None:
        """Let nothing wait."""
        self.delay = 0.0

    # ##### The thread #####

    def _run(self) -> None:
        while not self._is_closing:
            for key, _ in self._selector.select():
                with self._lock:
                    if key.fileobj is self._listener:
                        self._admit()
                    elif key.data is not None:
                        self._forward(*key.data)

    def _admit(self) -> None:
        client, _ = self._listener.accept()
        if self.is_refusing:
            client.close()
            return
        try:
            server = connect(*self._target)
        except OSError:  # so does the client's end
            client.close()
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(client, server)
        self.links.append(link)
        self._open.add(link)
        link.is_black_hole = self.is_swallowing
        if not link.is_black_hole:
            self._selector.register(client, EVENT_READ, (link, client))
            self._selector.register(server, EVENT_READ, (link, server))

    def _forward(self, link: Link, source: socket.socket) -> None:
        if link not in self._open:
            return
        target = link.server if source is link.client else link.client
        try:
            data = source.recv(_CHUNK)
            if not data:
                self._end(link)
                return
            if source is link.client:
                link.count(data)
            else:
                link.bytes_to_client += len(data)
            if self.delay:
                time.sleep(self.delay)
            target.sendall(data)
        except OSError:
            self._end(link)

    def _unregister(self, link: Link) -> None:
        for each in (link.client, link.server):
            if each.fileno() in self._selector.get_map():
                self._selector.unregister(each)

    def _end(self, link: Link) -> None:
        self._unregister(link)
        self._open.discard(link)
        link.close()


def main(host: str, port: str) -> None:
    proxy: Any = Proxy(host, int(port))
    print(proxy.port, flush=True)
    for line in sys.stdin:
        getattr(proxy, line.strip())()
    proxy.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
