"""Plugin: pools that are watched while they work, run dry, or have a long queue."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connections
from helpers import census, wait_until
from traffic import DryPool, Traffic, make_own_pool, warm_up, watch


@pytest.fixture
def warm(alias: str) -> str:
    """An alias whose pool is at rest, so that its census can be taken at any moment."""
    warm_up(alias)
    return alias


@pytest.fixture
def traffic(warm: str) -> Iterator[Traffic]:
    """What the pool of `alias` hands out and takes back during the test."""
    with watch(warm) as watched:
        yield watched


@pytest.fixture
def brief(alias: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DryPool]:
    """`alias` with a pool of one that gives up waiting at once, and a fresh wrapper."""
    from own_pool.stock import base

    name = f"brief_{alias}"
    monkeypatch.setattr(base, "TIMEOUT", 0.2)  # which a pool reads when it is made
    make_own_pool(name, 1)
    warm_up(name)
    used = connections[name]
    connections[name] = used.copy()
    yield DryPool(name)
    connections[name].close()
    connections[name] = used
    wait_until(lambda: census(name) == (1, 0), f"nothing of {name} is in use")


@pytest.fixture
def busy(alias: str) -> Iterator[str]:
    """`alias` with a pool of four and a long queue."""
    name = f"busy_{alias}"
    make_own_pool(name, 4)
    warm_up(name)
    yield name
    wait_until(lambda: census(name).in_use == 0, f"nothing of {name} is in use")
