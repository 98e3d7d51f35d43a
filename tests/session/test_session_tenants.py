"""Many tenants on a pool of two: does one ever see what another did to its session?

Each tenant is a thread that runs requests of random steps: it sets its role, search path
and a setting, makes temporary tables, takes locks, looks, fails, and closes, in any order.
It knows what it must see.  `SESSION_STEPS` says how many steps all of them run.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import DatabaseError, connections, transaction
from faults import extra_alias
from helpers import wait_until
from own_pool.stock import base as own
from sessions import ask, in_another_request, look

from django_pg_real_pool import pin_connection

STEPS = int(os.environ.get("SESSION_STEPS", "1500"))
TENANTS = 5
ROLE = "real_pool_tenant_{}"
LOCKS = range(901, 904)

_LOOK = """
    SELECT current_user, current_setting('search_path'), current_setting('app.tenant', true),
        ARRAY(SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
        ARRAY(SELECT objid::int FROM pg_locks
            WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""


class Failure(Exception):
    """What goes wrong in a request."""


@dataclass
class Session:
    """What a tenant must see in its session; the defaults are those of a clean one."""

    role: str
    path: str
    setting: str = ""
    tables: frozenset[str] = frozenset()
    locks: frozenset[int] = frozenset()


@dataclass
class Town:
    """What the tenants share: the pool, and what they found out."""

    alias: str
    clean: Session
    seed: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    #: Which tenant has which advisory lock, as far as the tenants know.
    owners: dict[int, int] = field(default_factory=dict)
    #: Something of another tenant was seen.
    foreign: list[str] = field(default_factory=list)
    #: Something else was not as it must be.
    wrong: list[str] = field(default_factory=list)
    steps: int = 0


class Tenant:
    """One thread's requests."""

    def __init__(self, town: Town, number: int) -> None:
        self.town = town
        self.number = number
        self.chance = random.Random(town.seed + number)
        self.session = self.clean()
        #: Whether the connection is kept since a statement outside a pin.
        self.is_held = False

    def clean(self) -> Session:
        return Session(**vars(self.town.clean))

    def run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                self.step(self.STEPS)
            self.close()
        finally:
            connections.close_all()

    def step(self, choices: Any) -> None:
        with self.town.lock:
            self.town.steps += 1
        self.chance.choice(choices)(self)

    def execute(self, statement: str, *params: Any) -> Any:
        with connections[self.town.alias].cursor() as cursor:
            cursor.execute(statement, params or None)
            return cursor.fetchone() if cursor.description else None

    # ##### Steps #####

    def become(self) -> None:
        self.session.role = ROLE.format(self.number)
        self.execute(f"SET ROLE {self.session.role}")
        self.is_held = True

    def choose_path(self) -> None:
        self.session.path = f"tenant_{self.number}, public"
        self.execute(f"/* mine */ SET search_path TO {self.session.path}")
        self.is_held = True

    def choose_setting(self) -> None:
        self.session.setting = str(self.number)
        self.execute("SELECT set_config('app.tenant', %s, false)", self.session.setting)
        self.is_held = True

    def make_table(self) -> None:
        name = f"of_{self.number}_{self.chance.randrange(3)}"
        self.session.tables |= {name}
        self.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} AS SELECT 1 AS x")
        self.is_held = True

    def take_lock(self) -> None:
        key = self.chance.choice(LOCKS)
        if key in self.session.locks:
            return
        (taken,) = self.execute("SELECT pg_try_advisory_lock(%s)", key)
        self.is_held = True
        if taken:
            self.session.locks |= {key}
            with self.town.lock:
                owner = self.town.owners.setdefault(key, self.number)
            if owner != self.number:
                self.town.foreign.append(f"{self.number} has the lock {key} of {owner}")

    def give_lock(self) -> None:
        for key in self.session.locks:
            self.forget_locks({key})
            self.session.locks -= {key}
            self.is_held = True
            if self.execute("SELECT pg_advisory_unlock(%s)", key) != (True,):
                self.town.wrong.append(f"{self.number} had lost the lock {key}")
            break

    def look(self) -> None:
        role, path, setting, tables, locks = self.execute(_LOOK)
        seen = Session(role, path, setting or "", frozenset(tables), frozenset(locks))
        if seen == self.session:
            return
        told = f"{self.number} saw {seen}, not {self.session}"
        others = [str(each) for each in range(TENANTS) if each != self.number]
        is_foreign = (
            role in map(ROLE.format, others)
            or path in [f"tenant_{other}, public" for other in others]
            or setting in others
            or any(table.split("_")[1] in others for table in tables)
            or not seen.locks <= self.session.locks
        )
        (self.town.foreign if is_foreign else self.town.wrong).append(told)
        self.session = seen  # what follows from it is not told again

    def fail_in_sql(self) -> None:
        with suppress(DatabaseError):
            self.execute("SELECT 1 / 0")

    def run_block(self) -> None:
        before = Session(**vars(self.session))
        is_lost = self.chance.random() < 0.5
        try:
            with transaction.atomic(self.town.alias):
                for _ in range(self.chance.randint(0, 3)):
                    self.step(self.IN_BLOCK)
                if is_lost:
                    if self.chance.random() < 0.5:
                        raise Failure
                    self.execute("SELECT 1 / 0")
        except (Failure, DatabaseError):
            locks = self.session.locks
            self.session = before  # a rollback ends no session-level lock
            self.session.locks = locks

    def run_pinned(self) -> None:
        was_held = self.is_held
        with suppress(Failure), pin_connection(self.town.alias):
            for _ in range(self.chance.randint(0, 4)):
                self.step(self.IN_PIN)
            self.is_held = was_held
            if not was_held:
                self.forget_locks(self.session.locks)
                self.session = self.clean()
            if self.chance.random() < 0.3:
                raise Failure

    def close(self) -> None:
        self.forget_locks(self.session.locks)
        self.session = self.clean()
        self.is_held = False
        connections[self.town.alias].close()

    def forget_locks(self, keys: Any) -> None:
        """Let others have these, from before they are free."""
        with self.town.lock:
            for key in keys:
                if self.town.owners.get(key) == self.number:
                    del self.town.owners[key]

    IN_BLOCK = (become, choose_path, choose_setting, make_table, take_lock, give_lock, look)
    IN_PIN = (*IN_BLOCK, fail_in_sql, run_block, look)
    STEPS = (*IN_PIN, run_pinned, look, look, close, close, close)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool without a queue serves whoever is quickest; nobody is to give up for that."""
    monkeypatch.setattr(own, "TIMEOUT", 120.0)


@pytest.fixture(autouse=True)
def _roles(observer: Any) -> Iterator[None]:
    for number in range(TENANTS):
        observer.execute(f"DROP ROLE IF EXISTS {ROLE.format(number)}")
        observer.execute(f"CREATE ROLE {ROLE.format(number)}")
    yield
    for number in range(TENANTS):
        observer.execute(f"DROP OWNED BY {ROLE.format(number)}")
        observer.execute(f"DROP ROLE {ROLE.format(number)}")


def live(alias: str) -> Town:
    """Let all tenants run their steps on an alias with a pool of two."""
    role, path = ask(alias, "SELECT current_user"), ask(alias, "SHOW search_path")
    connections[alias].close()
    town = Town(alias, Session(role, path), seed=random.randrange(2**32))
    with ThreadPoolExecutor(TENANTS) as executor:
        running = [
            executor.submit(Tenant(town, number).run, STEPS // TENANTS)
            for number in range(TENANTS)
        ]
        for each in running:
            each.result()
    assert town.steps >= STEPS
    return town


def advisory_locks(observer: Any) -> int:
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return int(observer.execute(query).fetchone()[0])


def test_no_tenant_ever_sees_the_session_of_another(alias: str, observer: Any) -> None:
    """S1, S2, S3: nor its own of an earlier request; and every lock is free at the end."""
    with extra_alias(f"tenants_{alias}", alias, size=2, timeout=120.0) as name:
        before = in_another_request(lambda: look(name)[1])
        town = live(name)
        assert town.foreign == [], f"seed {town.seed}"
        assert town.wrong == [], f"seed {town.seed}"
        wait_until(lambda: advisory_locks(observer) == 0, "every advisory lock is free")
        assert in_another_request(lambda: look(name)[1]) == before


def test_the_same_tenants_see_each_other_with_stock(alias: str, observer: Any) -> None:
    """S3: stock fails this, so the test above can fail."""
    with extra_alias(
        f"tenants_stock_{alias}", f"stock_{alias}", size=2, timeout=120.0
    ) as name:
        town = live(name)
        assert town.foreign
