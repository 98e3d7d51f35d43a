"""D1: what Django does with a backend beyond queries is as stock on an engine.

Schema editor, migrations, introspection, management commands, test databases and their
clones, test cases, signals and the thread-sharing checks: each runs on both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import unittest
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core import signals
from django.core.cache.backends.db import DatabaseCache
from django.core.management import call_command
from django.db import DatabaseError, OperationalError, connections, models, transaction
from django.db.models.signals import post_migrate
from django.test import TestCase, override_settings
from helpers import census, forget_pool, let_grow, run_in_thread
from items import Item
from places import PYTHON_PATH
from settings import STOCK_OF
from side_by_side import assert_same, describe, observe, rolled_back, same_for_all
from traffic import warm_up, watch

import django_pg_real_pool
from django_pg_real_pool import pin_connection


@pytest.fixture(autouse=True)
def _at_rest(alias: str) -> None:
    """Let the pool open what it opens by itself, so that its census is exact."""
    warm_up(alias)


#: Of psycopg, which asks a SQLAlchemy pool's connection for it when it quotes a value.
pytestmark = pytest.mark.filterwarnings("ignore:The _ConnectionFairy.connection attribute")


class Shelf(models.Model):
    name = models.CharField(max_length=20, unique=True)

    class Meta:
        app_label = "side_by_side"

    def __str__(self) -> str:
        return self.name


class Book(models.Model):
    title = models.CharField(max_length=20, db_index=True)
    shelf = models.ForeignKey(Shelf, models.CASCADE)

    class Meta:
        app_label = "side_by_side"
        constraints = (
            models.UniqueConstraint(fields=["title", "shelf"], name="book_once"),
            models.CheckConstraint(condition=~models.Q(title=""), name="book_titled"),
        )

    def __str__(self) -> str:
        return self.title


@pytest.fixture
def same(alias: str) -> Iterator[Callable[[Callable[[Any], Any]], Any]]:
    """Return a function that runs a program on both, compares, and returns the result."""

    def run(program: Callable[[Any], Any]) -> Any:
        ours, stock = observe(alias, program), observe(STOCK_OF[alias], program)
        assert_same(ours, stock)
        assert ours.error is None, ours.error
        assert census(alias).in_use == 0
        return ours.result

    yield run
    with psycopg.connect(autocommit=True) as observer:
        observer.execute("DROP TABLE IF EXISTS side_by_side_book, side_by_side_shelf")


Same = Callable[[Callable[[Any], Any]], Any]


def new_field(field: models.Field[Any, Any], name: str) -> models.Field[Any, Any]:
    field.set_attributes_from_name(name)
    field.model = Book
    return field


# ##### Schema editor #####


@pytest.mark.parametrize("atomic", [True, False])
def test_a_schema_editor_makes_the_same_tables(same: Same, atomic: bool) -> None:
    """D1: tables made, changed and described by the schema editor, as stock."""

    def program(db: Any) -> Any:
        with db.schema_editor(atomic=atomic) as editor:
            editor.create_model(Shelf)
            editor.create_model(Book)
        with db.schema_editor(atomic=atomic) as editor:
            pages = models.IntegerField(default=7)
            editor.add_field(Book, new_field(pages, "pages"))
            note = models.TextField(default="it's 100%")
            editor.add_field(Book, new_field(note, "note"))
            editor.alter_field(
                Book, pages, new_field(models.BigIntegerField(null=True), "pages")
            )
            editor.add_index(Book, models.Index(fields=["title"], name="book_title_idx"))
            editor.remove_constraint(Book, Book._meta.constraints[0])
        with db.cursor() as cursor:
            described = [
                tuple(column)
                for column in db.introspection.get_table_description(
                    cursor, "side_by_side_book"
                )
            ]
            constraints = db.introspection.get_constraints(cursor, "side_by_side_book")
        with db.schema_editor(atomic=atomic) as editor:
            editor.delete_model(Book)
            editor.delete_model(Shelf)
        return described, constraints, db.introspection.table_names()

    described, constraints, tables = same(program)
    assert len(described) == 5
    assert "book_titled" in constraints
    assert tables == ["item"]


def test_a_schema_editor_quotes_before_its_first_statement(same: Same) -> None:
    """D1: values are quoted by the connection itself, which an editor has throughout."""

    def program(db: Any) -> Any:
        with db.schema_editor() as editor:
            assert db.connection is not None
            return [
                editor.quote_value("it's"),
                editor.quote_value(7),
                db.ops.compose_sql("SELECT %s", ["100%"]),
            ]

    assert same(program)[:2] == ["'it''s'", "7"]


def test_a_schema_editor_collects_sql(same: Same) -> None:
    """D1: `sqlmigrate` runs nothing, and prints what stock prints."""

    def program(db: Any) -> Any:
        with db.schema_editor(collect_sql=True) as editor:
            editor.create_model(Shelf)
            editor.add_field(Shelf, new_field(models.TextField(default="it's"), "note"))
        return editor.collected_sql, db.introspection.table_names()

    collected, tables = same(program)
    assert "'it''s'" in "".join(collected)
    assert tables == ["item"]


@pytest.mark.parametrize("atomic", [True, False])
def test_a_schema_editor_that_fails_releases(same: Same, atomic: bool) -> None:
    """D1: an error in an editor undoes an atomic one, and leaves no connection held."""

    def program(db: Any) -> Any:
        def fail() -> None:
            with db.schema_editor(atomic=atomic) as editor:
                editor.create_model(Shelf)
                raise LookupError

        with pytest.raises(LookupError):
            fail()
        with pytest.raises(DatabaseError), db.schema_editor(atomic=atomic) as editor:
            editor.execute("ALTER TABLE no_such_table ADD x int")
        tables = db.introspection.table_names()
        with db.cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS side_by_side_shelf")
        return tables, db.in_atomic_block

    assert ("side_by_side_shelf" in same(program)[0]) is not atomic


def test_a_schema_editor_within_a_block_is_part_of_it(same: Same) -> None:
    """D1: an editor in an atomic block is rolled back with it."""

    def program(db: Any) -> Any:
        with rolled_back(db):
            with db.schema_editor() as editor:
                editor.create_model(Shelf)
            assert "side_by_side_shelf" in db.introspection.table_names()
        return db.introspection.table_names()

    assert same(program) == ["item"]


# ##### Introspection #####


def test_introspection_finds_the_same(same: Same) -> None:
    """D1: introspection, and `inspectdb` upon it."""

    def program(db: Any) -> Any:
        with db.schema_editor() as editor:
            editor.create_model(Shelf)
            editor.create_model(Book)
        output = StringIO()
        call_command("inspectdb", database=db.alias, stdout=output)
        look, found = db.introspection, {}
        with db.cursor() as cursor:
            for table in sorted(info.name for info in look.get_table_list(cursor)):
                found[table] = [
                    look.get_relations(cursor, table),
                    look.get_sequences(cursor, table),
                    look.get_primary_key_columns(cursor, table),
                    look.get_constraints(cursor, table),
                ]
        found["all"] = [look.table_names(include_views=True), look.django_table_names()]
        with db.schema_editor() as editor:
            editor.delete_model(Book)
            editor.delete_model(Shelf)
        return found, output.getvalue()

    found, printed = same(program)
    assert found["side_by_side_book"][0]
    assert "class SideBySideBook(models.Model)" in printed


# ##### Migrations and management commands #####

MIGRATIONS = {
    "0001_initial": """
class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Shop", [
            ("id", models.BigAutoField(primary_key=True)),
            ("name", models.CharField(max_length=20, unique=True)),
            ("parent", models.ForeignKey("self", models.CASCADE, null=True)),
        ]),
    ]
""",
    "0002_data": """
def fill(apps, schema_editor):
    shops = apps.get_model("{app}", "Shop").objects.using(schema_editor.connection.alias)
    parent = shops.create(name="one")
    shops.bulk_create([shops.model(name=name, parent=parent) for name in ["two", "three"]])
    for shop in shops.iterator(chunk_size=1):
        shop.save()

class Migration(migrations.Migration):
    dependencies = [("{app}", "0001_initial")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
""",
    "0003_columns": """
class Migration(migrations.Migration):
    dependencies = [("{app}", "0002_data")]
    operations = [
        migrations.AddField("Shop", "note", models.TextField(default="it's 100%")),
        migrations.AlterField("Shop", "name", models.TextField(unique=True)),
        migrations.RunSQL("UPDATE {app}_shop SET note = name", migrations.RunSQL.noop),
    ]
""",
    "0004_concurrently": """
class Migration(migrations.Migration):
    atomic = False
    dependencies = [("{app}", "0003_columns")]
    operations = [AddIndexConcurrently("Shop", models.Index(fields=["note"], name="note_idx"))]
""",
}

FAILING_MIGRATION = """
def fail(apps, schema_editor):
    apps.get_model("{app}", "Shop").objects.using(schema_editor.connection.alias).all().delete()
    raise LookupError("in a migration")

class Migration(migrations.Migration):
    dependencies = [("{app}", "0004_concurrently")]
    operations = [migrations.RunPython(fail)]
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alias: str) -> Iterator[str]:
    """An installed app that is nothing but its migrations."""
    name = f"shop_{alias}_{tmp_path.name}".lower().replace("-", "_")
    write_migrations(tmp_path / name, MIGRATIONS)
    monkeypatch.syspath_prepend(tmp_path)
    with override_settings(INSTALLED_APPS=[name]):
        yield name
    with psycopg.connect(autocommit=True) as observer:
        observer.execute(f'DROP TABLE IF EXISTS "{name}_shop", django_migrations')


def write_migrations(directory: Path, sources: dict[str, str]) -> None:
    package = directory / "migrations"
    package.mkdir(parents=True, exist_ok=True)
    for module in (
        directory / "__init__.py",
        directory / "models.py",
        package / "__init__.py",
    ):
        module.touch()
    for name, source in sources.items():
        (package / f"{name}.py").write_text(
            "from django.contrib.postgres.operations import AddIndexConcurrently\n"
            "from django.db import migrations, models\n"
            + source.replace("{app}", directory.name)
        )


def test_migrations_run_forwards_and_backwards(same: Same, app: str) -> None:
    """D1: a real migration: tables, data, columns with defaults, concurrent indexes."""
    seen: list[tuple[str, int]] = []

    def receiver(using: str, **kwargs: Any) -> None:
        with connections[using].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM django_migrations")
            seen.append((same_for_all(using), cursor.fetchone()[0]))

    def program(db: Any) -> Any:
        seen.clear()
        output = StringIO()
        options: dict[str, Any] = {"database": db.alias, "stdout": output}
        call_command("migrate", **options)
        with db.cursor() as cursor:
            cursor.execute(f'SELECT name, parent_id, note FROM "{app}_shop" ORDER BY id')
            rows = cursor.fetchall()
            indexes = "note_idx" in db.introspection.get_constraints(cursor, f"{app}_shop")
        call_command("showmigrations", **options)
        call_command("sqlmigrate", app, "0003", **options)
        call_command("sqlmigrate", app, "0001", backwards=True, **options)
        call_command("migrate", app, "zero", **options)
        tables = db.introspection.table_names()
        with db.cursor() as cursor:
            cursor.execute("DROP TABLE django_migrations")
        return rows, indexes, tables, same_for_all(output.getvalue()), list(seen)

    post_migrate.connect(receiver)
    try:
        rows, indexed, tables, printed, receivers = same(program)
    finally:
        post_migrate.disconnect(receiver)
    assert rows == [("one", None, "one"), ("two", 1, "two"), ("three", 1, "three")]
    assert indexed
    assert tables == ["django_migrations", "item"]
    assert "DEFAULT 'it''s 100%'" in printed
    assert receivers == [(receivers[0][0], 4), (receivers[0][0], 0)]


def test_a_migration_that_fails_changes_nothing(
    same: Same, app: str, tmp_path: Path
) -> None:
    """D1: an atomic migration that fails is undone; its connection is released."""
    write_migrations(tmp_path / app, {"0005_failing": FAILING_MIGRATION})

    def program(db: Any) -> Any:
        with pytest.raises(LookupError):
            call_command("migrate", database=db.alias, verbosity=0)
        with db.cursor() as cursor:
            cursor.execute(f'SELECT count(*) FROM "{app}_shop"')
            count = cursor.fetchone()
            cursor.execute("SELECT name FROM django_migrations ORDER BY id")
            applied = cursor.fetchall()
            cursor.execute(f'DROP TABLE "{app}_shop", django_migrations')
        return count, applied

    count, applied = same(program)
    assert count == (3,)
    assert applied == [(name,) for name in MIGRATIONS]


def test_the_database_cache_works(same: Same) -> None:
    """D1: a part of Django that does its own SQL, transactions and error handling."""

    def program(db: Any) -> Any:
        class Router:
            def db_for_read(self, model: Any, **hints: Any) -> str:
                return str(db.alias)

            db_for_write = db_for_read

            def allow_migrate(self, *args: Any, **kwargs: Any) -> bool:
                return True

        with override_settings(
            DATABASE_ROUTERS=[Router()],
            CACHES={
                "default": {
                    "BACKEND": "django.core.cache.backends.db.DatabaseCache",
                    "LOCATION": "the_cache",
                }
            },
        ):
            call_command("createcachetable", database=db.alias, verbosity=0)
            cache = DatabaseCache("the_cache", {})
            cache.set("a", 1)
            found = [cache.get("a"), cache.add("a", 2), cache.incr("a"), cache.get("b")]
            cache.set_many({"b": 2, "c": 3})
            found += [
                cache.get_many(["a", "b", "c"]),
                cache.delete("a"),
                cache.has_key("a"),
            ]
            cache.clear()
        db.queries_log.clear()  # they have the time of day in them
        with db.cursor() as cursor:
            cursor.execute("DROP TABLE the_cache")
        return found

    assert same(program)[:4] == [1, False, 2, None]


# ##### Test databases #####


def forget_pools(alias: str) -> None:
    """End what stays connected to another database than the settings name now.

    django-db-connection-pool makes a pool even for Django's detour by "postgres".
    """
    forget_pool(alias)
    if alias.endswith("dj"):
        from dj_db_conn_pool.core import pool_container

        pool = pool_container.pop("__no_db__", None)
        if pool is not None:
            pool.dispose()


def databases() -> list[str]:
    with psycopg.connect(autocommit=True) as observer:
        return [
            name
            for (name,) in observer.execute(
                "SELECT datname FROM pg_database WHERE datname LIKE 'test_%' ORDER BY 1"
            )
        ]


def test_test_databases_are_made_cloned_and_dropped(alias: str, app: str) -> None:
    """D1: `create_test_db()`, a clone for a parallel worker, `destroy_test_db()`."""
    before = databases()

    def clone(db: Any) -> str:
        """Clone the test database as a parallel worker has it; return what it is."""
        db.close()
        let_grow(db)
        db.creation.clone_test_db("1", verbosity=0)
        settings = db.creation.get_test_db_clone_settings("1")
        worker = type(db)(settings, f"worker_{db.alias}")
        name = current_database(worker)
        worker.close()
        let_grow(worker)
        worker.close_pool()
        assert name in databases()
        db.creation.destroy_test_db(suffix="1", verbosity=0)
        return name

    def program(db: Any) -> Any:
        forget_pools(db.alias)
        creation, name = db.creation, db.settings_dict["NAME"]
        found = {"made": creation.create_test_db(verbosity=0, autoclobber=True)}
        try:
            found["connected to"] = current_database(db)
            with db.cursor() as cursor:
                cursor.execute(f'SELECT count(*) FROM "{app}_shop"')
                found["rows"] = cursor.fetchone()
            try:
                found["clone"] = clone(db)
            except SystemExit as error:
                found["clone"] = f"exit {error.code}"
            found["left"] = [each for each in databases() if each not in before]
        finally:
            creation.destroy_test_db(name, verbosity=0)
        found["restored"] = db.settings_dict["NAME"] == name
        forget_pools(db.alias)
        found["dropped"] = databases() == before
        found["connected again"] = current_database(db) == name
        return found

    ours, stock = observe(alias, program), observe(STOCK_OF[alias], program)
    assert ours.error is None, ours.error
    made = ours.result["made"]
    assert ours.result == {
        "made": made,
        "connected to": made,
        "rows": (3,),
        "clone": f"{made}_1",
        "left": [made],
        "restored": True,
        "dropped": True,
        "connected again": True,
    }
    if alias == "dj":
        # Stock can't clone: its pool keeps a connection to the database to be copied.
        assert stock.result == {**ours.result, "clone": "exit 2"}
    else:
        assert_same(ours, stock)


def current_database(db: Any) -> str:
    with db.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        return str(cursor.fetchone()[0])


# ##### Test cases #####


def test_a_test_case_sees_its_own_rows_only(alias: str) -> None:
    """D1: Django's TestCase: class data, rollback, counts, captured callbacks."""

    def program(db: Any) -> Any:
        seen: list[Any] = []

        class Case(TestCase):
            databases = {db.alias}  # noqa: RUF012 - as Django wants it

            @classmethod
            def setUpTestData(cls) -> None:
                Item.objects.using(db.alias).create(name="of the class")

            def names(self) -> list[str]:
                with self.assertNumQueries(1, using=db.alias):
                    return list(Item.objects.using(db.alias).values_list("name", flat=True))

            def test_a(self) -> None:
                Item.objects.using(db.alias).create(name="of a")
                seen.append(sorted(self.names()))

            def test_b(self) -> None:
                with self.captureOnCommitCallbacks(
                    using=db.alias, execute=True
                ) as captured:
                    transaction.on_commit(lambda: seen.append("called"), using=db.alias)
                seen.append((len(captured), self.names()))

            def test_c(self) -> None:
                with self.assertNumQueries(0, using=db.alias):
                    pass
                with pytest.raises(DatabaseError), transaction.atomic(using=db.alias):
                    Item.objects.using(db.alias).create(name="of the class")
                seen.append(self.names())

        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
        return seen, result.testsRun, result.errors, result.failures

    ours, stock = observe(alias, program), observe(STOCK_OF[alias], program)
    assert_same(ours, stock)
    assert ours.result[0][0] == ["of a", "of the class"]
    assert ours.result[1:] == (3, [], [])
    assert ours.committed == []


def test_a_database_that_a_test_case_does_not_name_is_forbidden(alias: str) -> None:
    """D1: the test runner's refusal reaches the user, at the first statement too."""

    def program(db: Any) -> Any:
        class Case(TestCase):
            databases: set[str] = set()  # noqa: RUF012 - as Django wants it

            def test_a(self) -> None:
                ways: list[Callable[[], Any]] = [db.cursor, db.ensure_connection]
                ways += [db.connect, db.chunked_cursor, pin_connection(db.alias).__enter__]
                for way in ways:
                    with pytest.raises(AssertionError, match="not allowed"):
                        way()

        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
        return result.testsRun, [str(error) for error in result.errors + result.failures]

    ours, stock = observe(alias, program), observe(STOCK_OF[alias], program)
    assert_same(ours, stock)
    assert ours.result == (1, [])


@pytest.mark.parametrize("name", ["connect", "ensure_connection"])
def test_a_test_may_replace_how_a_wrapper_connects(
    alias: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """D1: on the one wrapper, say to see what the code does when the database is away."""

    def program(db: Any) -> Any:
        found = []

        def away() -> None:
            raise OperationalError("the database is away")

        with monkeypatch.context() as patch:
            patch.setattr(db, name, away)
            for use in (db.cursor, db.chunked_cursor, db.ensure_connection):
                with pytest.raises(OperationalError, match="the database is away"):
                    use()
            with pytest.raises(OperationalError), transaction.atomic(using=db.alias):
                Item.objects.using(db.alias).exists()
            found.append(db.in_atomic_block)
        return [*found, Item.objects.using(db.alias).exists()]

    ours, stock = observe(alias, program), observe(STOCK_OF[alias], program)
    assert ours.result == stock.result == [False, False]
    assert census(alias).in_use == 0


#: A user's tests: pytest-django lets only marked ones use the database.
USERS_TESTS = """
import pytest
from django.db import connections, transaction
from django_pg_real_pool import pin_connection

ALIAS = {alias!r}
FORBIDDEN = pytest.raises(RuntimeError, match="Database access not allowed")

def use():
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT 1")

def test_a_query():
    with FORBIDDEN:
        use()

def test_a_block():
    with FORBIDDEN, transaction.atomic(using=ALIAS):
        use()

def test_a_pin():
    with FORBIDDEN, pin_connection(ALIAS):
        pass

def test_a_connection():
    with FORBIDDEN:
        connections[ALIAS].ensure_connection()

def test_it_may_be_allowed(django_db_blocker):
    with django_db_blocker.unblock():
        use()
    with FORBIDDEN:
        use()
    with django_db_blocker.unblock():
        connections[ALIAS].close()
"""


def test_a_forbidden_database_stays_forbidden(alias: str, tmp_path: Path) -> None:
    """D1: what pytest-django puts in the place of Django's method is obeyed."""
    (tmp_path / "test_users.py").write_text(USERS_TESTS.format(alias=alias))
    (tmp_path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = settings\n")
    package = Path(django_pg_real_pool.__file__).parent.parent
    path = os.pathsep.join([str(package), PYTHON_PATH])
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "5 passed" in completed.stdout, completed.stdout


# ##### Signals of a request #####


def test_the_end_of_a_request_ends_the_session(same: Same) -> None:
    """D1: request_started and request_finished do to a wrapper what they do in stock."""

    def program(db: Any) -> Any:
        def state() -> Any:
            return db.connection is None, db.autocommit, len(db.queries), db.run_on_commit

        found = []
        for autocommit in (True, False):
            signals.request_started.send(sender=None)
            found.append(state())
            db.set_autocommit(autocommit)
            Item.objects.using(db.alias).create(name=f"with autocommit {autocommit}")
            signals.request_finished.send(sender=None)
            found.append(state())
        Item.objects.using(db.alias).create(name="of the next request")
        return found

    same(program)


# ##### Threads #####


def test_another_thread_is_refused(alias: str) -> None:
    """D1: a wrapper is its thread's alone; a refused thread takes no connection."""

    def program(db: Any) -> Any:
        def attempt(name: str) -> str:
            try:
                getattr(db, name)()
            except DatabaseError as error:
                return describe(error)
            return "allowed"

        refused = ["validate_thread_sharing", "cursor", "commit", "rollback", "close"]
        return run_in_thread(lambda: [attempt(name) for name in refused])

    with watch(alias) as traffic:
        ours = observe(alias, program)
    assert (traffic.checkouts, traffic.checkins) == (1, 1)  # by observe() itself
    assert_same(ours, observe(STOCK_OF[alias], program))
    assert {text.partition(":")[0] for text in ours.result} == {
        "django.db.utils.DatabaseError"
    }


def test_another_thread_may_use_a_wrapper_that_is_shared(same: Same) -> None:
    """D1: after `inc_thread_sharing()` both threads are in one transaction, as stock."""

    def program(db: Any) -> Any:
        items = Item.objects.using(db.alias)
        db.inc_thread_sharing()
        try:
            with transaction.atomic(using=db.alias):
                items.create(name="a")
                with db.cursor() as cursor:
                    cursor.execute("SELECT pg_backend_pid()")
                    here = cursor.fetchone()

                def elsewhere() -> Any:
                    with db.cursor() as cursor:
                        cursor.execute("SELECT pg_backend_pid(), count(*) FROM item")
                        return cursor.fetchone()

                there = run_in_thread(elsewhere)
        finally:
            db.dec_thread_sharing()
        with pytest.raises(RuntimeError):
            db.dec_thread_sharing()
        return (here[0] == there[0], there[1])

    assert same(program) == (True, 1)


def test_two_threads_that_share_a_wrapper_share_its_lease(alias: str, wrapper: Any) -> None:
    """R7: at once in two threads, one wrapper has one lease at most, and loses none."""
    start = threading.Barrier(2)
    most: list[int] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            start.wait(10)
            for number in range(150):
                with wrapper.cursor() as cursor:
                    cursor.execute("SELECT %s::int", [number])
                    assert cursor.fetchone() == (number,)
                    most.append(census(alias).in_use)
        except Exception as error:  # noqa: BLE001 - raised by the assert below
            errors.append(error)

    wrapper.inc_thread_sharing()
    try:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        wrapper.dec_thread_sharing()
    assert errors == []
    assert set(most) == {1}
    assert wrapper.connection is None
    assert census(alias).in_use == 0
