"""Plugin: engines that reach their server through a proxy, or reach another server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from django.conf import settings
from django.db import connections
from faults import PLAIN, census, extra_alias
from helpers import wait_until
from second_server import Server
from tcp_proxy import Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before the tests' server."""
    database = settings.DATABASES["default"]
    with closing(Proxy(database["HOST"], int(database["PORT"]))) as proxy:
        yield proxy


@pytest.fixture
def proxied(alias: str, proxy: Proxy) -> Iterator[str]:
    """Each engine in turn, with a pool of one behind `proxy`, used once."""
    with extra_alias(
        f"proxied_{alias}",
        alias,
        size=1,
        HOST="127.0.0.1",
        PORT=proxy.port,
        OPTIONS=PLAIN,
    ) as name:
        with connections[name].cursor() as cursor:
            cursor.execute("SELECT 1")
        wait_until(lambda: census(name) == (1, 0), f"the pool of {name} is at rest")
        yield name


@pytest.fixture(scope="session")
def second_server() -> Iterator[Server]:
    """Another PostgreSQL, which asks for a password."""
    server = Server()
    yield server
    server.remove()
