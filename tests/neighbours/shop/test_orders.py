"""Tests of each kind that Django and pytest-django have, as a project has them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.request import urlopen

import pytest
from django.db import connection, connections, transaction
from django.test import Client, TestCase, TransactionTestCase

from django_pg_real_pool import assert_released

from .models import Order
from .notes import note


class OrderTests(TestCase):
    """Its tests are in a transaction, so on one connection."""

    databases = {"default", "archive"}  # noqa: RUF012 - as Django wants it

    @classmethod
    def setUpTestData(cls) -> None:
        for alias in ("default", "archive"):
            Order.objects.using(alias).create(number=1)

    def test_what_the_class_made_is_there(self) -> None:
        for alias in ("default", "archive"):
            note(alias)
            assert Order.objects.using(alias).get().number == 1
            assert connections[alias].connection is not None

    def test_what_a_test_made_is_gone(self) -> None:
        for number in (2, 3):
            with transaction.atomic():
                Order.objects.create(number=number)
        assert Order.objects.count() == 3

    def test_callbacks_are_captured(self) -> None:
        done: list[int] = []
        captured = self.captureOnCommitCallbacks(execute=True)
        with captured as callbacks, transaction.atomic():
            order = Order.objects.create(number=2)
            transaction.on_commit(lambda: done.append(order.number))
        assert len(callbacks) == 1
        assert done == [2]


class CommittedOrderTests(TransactionTestCase):
    """Its tests commit, so there is a release after each query."""

    def test_a_query_is_released(self) -> None:
        note()
        Order.objects.create(number=2)
        assert_released()
        assert Order.objects.count() == 1

    def test_a_block_is_released_before_its_callbacks(self) -> None:
        seen: list[Any] = []
        with transaction.atomic():
            Order.objects.create(number=2)
            assert connection.connection is not None
            transaction.on_commit(lambda: seen.append(connection.connection))
        assert seen == [None]


@pytest.mark.django_db
@pytest.mark.parametrize("number", range(10))
def test_each_test_has_an_empty_table(number: int) -> None:
    note()
    Order.objects.create(number=7)
    assert Order.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", range(4))
def test_more_threads_than_connections(number: int, real_pool_no_leases: None) -> None:
    together = threading.Barrier(6)

    def work(thread: int) -> None:
        together.wait(10)
        try:
            for turn in range(5):
                Order.objects.create(number=10 * thread + turn)
                note()
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert Order.objects.count() == 30


@pytest.mark.django_db(transaction=True, reset_sequences=True)
def test_sequences_begin_anew() -> None:
    assert Order.objects.create(number=7).pk == 1


@pytest.mark.django_db(transaction=True)
def test_a_server_of_another_thread(live_server: Any, real_pool_no_leases: None) -> None:
    Order.objects.create(number=1)
    with urlopen(f"{live_server.url}/order/2/", timeout=10) as answer:
        assert answer.read() == b"2 orders"
    assert Order.objects.count() == 2


@pytest.mark.django_db
def test_queries_are_counted(client: Client, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(2):
        assert client.get("/order/1/").content == b"1 orders"
    with django_assert_num_queries(4), transaction.atomic():  # which is a savepoint
        client.get("/order/2/")


@pytest.mark.django_db(transaction=True)
def test_counting_queries_keeps_no_connection(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        Order.objects.create(number=1)
        assert_released()


@pytest.mark.django_db(transaction=True)
def test_each_query_may_have_another_connection(
    real_pool_different_connections: None,
) -> None:
    def pid() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    assert pid() != pid()


@pytest.mark.django_db(transaction=True, databases=["default", "archive"])
def test_two_databases() -> None:
    Order.objects.using("archive").create(number=1)
    assert Order.objects.count() == 0


@pytest.mark.parametrize("how", ["query", "connect"])
def test_the_database_is_forbidden_without_a_mark(how: str) -> None:
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        Order.objects.count() if how == "query" else connection.ensure_connection()
    assert connection.connection is None
