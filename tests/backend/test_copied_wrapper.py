"""R7: a copied wrapper, as `copy.copy()` makes one, is another wrapper."""

from __future__ import annotations

import copy
import gc
from typing import Any

from django.db.transaction import atomic
from helpers import backend_pid, census, wait_until

from django_pg_real_pool._process import reaper


def _let_the_reaper_work() -> None:
    done: list[bool] = []
    reaper.run_soon(lambda: done.append(True))  # tasks are done in turn
    wait_until(lambda: bool(done), "the reaper has done what it was given")


def test_the_end_of_a_copy_is_not_the_end_of_the_lease(alias: str, wrapper: Any) -> None:
    # R7, R1: the lease has a hold, so it goes on.
    with atomic(using=alias):
        pid = backend_pid(alias)
        copied = copy.copy(wrapper)
        del copied
        gc.collect()
        _let_the_reaper_work()
        assert backend_pid(alias) == pid


def test_a_copy_has_a_lease_of_its_own(alias: str, wrapper: Any) -> None:
    # R1: what the one holds does not keep the other's connection.
    # A wrapper of its own: Django's test tools leave bound methods on the shared one.
    wrapper = wrapper.copy()
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        copied = copy.copy(wrapper)
        with copied.cursor() as another:
            another.execute("SELECT pg_backend_pid()")
            assert another.fetchone() != cursor.fetchone()
        assert copied.connection is None
        assert wrapper.connection is not None
    assert census(alias).in_use == 0
    wrapper.close()
    copied.close()
