"""D7, P4: what settings may say, and what is said about those that can't be meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from io import StringIO
from types import ModuleType
from typing import Any

import pytest
from configured import configured, error, found
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.db import connections, transaction
from django.db.backends.base.validation import BaseDatabaseValidation
from helpers import backend_pid
from settings import STOCK_OF

from django_pg_real_pool import make_release_backend, pin_connection
from django_pg_real_pool._settings import ReleaseOptions

#: Of psycopg, which asks a SQLAlchemy pool's connection for it when it quotes a value.
pytestmark = pytest.mark.filterwarnings("ignore:The _ConnectionFairy.connection attribute")

VALID_OPTIONS = ", ".join(sorted(field.name.upper() for field in fields(ReleaseOptions)))

#: Each thing that needs a connection, as the first thing that is done with a wrapper.
FIRST_USES: dict[str, Callable[[Any], Any]] = {
    "a query": lambda db: backend_pid(db.alias),
    "a query in a block": transaction.atomic("configured")(
        lambda db: backend_pid(db.alias)
    ),
    "ensure_connection": lambda db: db.ensure_connection(),
    "connect": lambda db: db.connect(),
    "a pin": lambda db: pin_connection(db.alias).__enter__(),
    "a schema editor": lambda db: db.schema_editor().__enter__(),
    "a temporary connection": lambda db: db.temporary_connection().__enter__(),
}


# ##### D7: whether there is a pool #####


@pytest.mark.parametrize("use", FIRST_USES)
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "missing"),
        ({"pool": None}, "missing"),
        ({"pool": {}}, "{}"),
        ({"pool": 0}, "0"),
    ],
)
def test_no_pool_is_an_error_at_the_first_checkout(
    use: str, options: dict[str, Any], what: str
) -> None:
    """D7: it names the alias, the setting and the remedy; before it nothing is wrong."""
    with configured("native", OPTIONS=options) as db:
        assert db.get_autocommit() is True
        with transaction.atomic(using="configured"):
            db.on_commit(lambda: None)
        with pytest.raises(ImproperlyConfigured) as caught:
            FIRST_USES[use](db)
        assert str(caught.value) == (
            "No connection pool is configured for the database alias 'configured': "
            f'DATABASES[\'configured\']["OPTIONS"]["pool"] is {what}. Set it to True or '
            "to a dict of psycopg_pool.ConnectionPool options, for example "
            '{"min_size": 2, "max_size": 10}; or set it to False to use this alias '
            "without a pool, as Django's own backend does."
        )
        assert db.connection is None
        assert not db.in_atomic_block
        db.close()
        db.settings_dict["OPTIONS"]["pool"] = {"min_size": 1}
        assert backend_pid("configured") > 0
        assert db.connection is None


@pytest.mark.parametrize("pool", [True, {"min_size": 1, "max_size": 1}])
def test_a_pool_is_configured_as_django_has_it(pool: Any) -> None:
    """D7: True, or a dict of options that the pool gets."""
    with configured("native", OPTIONS={"pool": pool}) as db:
        assert backend_pid("configured") > 0
        assert db.connection is None
        stats = db._connection_pools["configured"].get_stats()
        assert stats["pool_max"] == (4 if pool is True else 1)


def test_pool_false_is_without_a_pool(alias: str) -> None:
    """D7: stock, through everything that the library adds: pins, editors, assertions."""
    with configured(alias, OPTIONS={"pool": False}) as db:
        pid = backend_pid("configured")
        assert db.connection is not None
        with pin_connection("configured") as pinned:
            assert pinned is db
            assert backend_pid("configured") == pid
        assert db.connection is not None
        with db.schema_editor() as editor:
            assert editor.quote_value("it's") == "'it''s'"
            editor.execute("SELECT 1")
        with transaction.atomic(using="configured"):
            assert backend_pid("configured") == pid
        assert backend_pid("configured") == pid
        db.close()
        assert db.connection is None
        with pin_connection("configured"):
            assert db.get_autocommit() is True
            assert db.connection is not None


def test_pool_false_opens_no_pool() -> None:
    """D7: on the native engine the connection is this wrapper's own."""
    with configured("native", OPTIONS={"pool": False}) as db:
        backend_pid("configured")
        assert db.pool is None
        assert "configured" not in db._connection_pools
        raw = db.connection
        db.close()
        assert raw.closed


@pytest.mark.parametrize("max_age", [0, 60, None])
def test_conn_max_age_is_honoured_without_a_pool(max_age: int | None) -> None:
    """D7: as by stock: it says whether the connection outlives a request."""
    kept = []
    for alias in ("native", "stock_native"):
        options = {"pool": False}
        with configured(alias, CONN_MAX_AGE=max_age, OPTIONS=options) as db:
            backend_pid("configured")
            db.close_if_unusable_or_obsolete()  # as at the end of a request
            kept.append(db.connection is not None)
    assert kept == [max_age != 0] * 2


def test_conn_max_age_with_a_pool_is_djangos_error() -> None:
    """D7: the native pool refuses it at the first checkout, in Django's words."""
    with configured("native", CONN_MAX_AGE=60) as db:
        with pytest.raises(ImproperlyConfigured) as caught:
            backend_pid("configured")
        assert str(caught.value) == "Pooling doesn't support persistent connections."
        assert db.connection is None


@pytest.mark.parametrize("alias", ["dj", "own"])
def test_conn_max_age_with_another_pool_keeps_no_connection(alias: str) -> None:
    """D7: what it keeps is the session, not the lease."""
    with configured(alias, CONN_MAX_AGE=None) as db:
        backend_pid("configured")
        assert db.connection is None
        db.close_if_unusable_or_obsolete()
        assert backend_pid("configured") > 0
        assert db.connection is None


# ##### P4: RELEASE_OPTIONS #####

WRONG_OPTIONS = [
    (
        {"TRACK_ORIGIN": True},
        f"unknown option 'TRACK_ORIGIN'; valid options are: {VALID_OPTIONS}.",
    ),
    (
        {"track_origins": True},
        f"unknown option 'track_origins'; valid options are: {VALID_OPTIONS}.",
    ),
    ({1: True}, f"unknown option 1; valid options are: {VALID_OPTIONS}."),
    ({"TRACK_ORIGINS": 1}, "TRACK_ORIGINS must be True or False, got 1."),
    ({"TRACK_ORIGINS": "yes"}, "TRACK_ORIGINS must be True or False, got 'yes'."),
    ({"TRACK_ORIGINS": None}, "TRACK_ORIGINS must be True or False, got None."),
    (
        {"SESSION_STATE": "PIN"},
        "SESSION_STATE must be 'pin', 'error' or 'ignore', got 'PIN'.",
    ),
    ({"SESSION_STATE": []}, "SESSION_STATE must be 'pin', 'error' or 'ignore', got []."),
    (
        {"CHECK_AFTER_IDLE": -1},
        "CHECK_AFTER_IDLE must be a number of seconds, or None, got -1.",
    ),
    (
        {"CHECK_AFTER_IDLE": "1"},
        "CHECK_AFTER_IDLE must be a number of seconds, or None, got '1'.",
    ),
    (
        {"WARN_HELD_AFTER": True},
        "WARN_HELD_AFTER must be a number of seconds, or None, got True.",
    ),
    (["TRACK_ORIGINS"], "expected a dict of options, got ['TRACK_ORIGINS']."),
    ("TRACK_ORIGINS", "expected a dict of options, got 'TRACK_ORIGINS'."),
    (None, "expected a dict of options, got None."),
]


@pytest.mark.parametrize(("options", "problem"), WRONG_OPTIONS)
def test_an_option_that_can_not_be_meant_is_named(
    alias: str, options: Any, problem: str
) -> None:
    """P4: the alias, the key and the valid ones; nothing is taken from the pool."""
    with configured(alias, RELEASE_OPTIONS=options) as db:
        for use in (lambda: backend_pid("configured"), db.get_autocommit):
            with pytest.raises(ImproperlyConfigured) as caught:
                use()
            assert str(caught.value) == (
                f"DATABASES['configured']['RELEASE_OPTIONS']: {problem}"
            )
        assert db.connection is None
        db.settings_dict["RELEASE_OPTIONS"] = {}
        assert backend_pid("configured") > 0


def test_the_first_wrong_option_is_reported() -> None:
    """P4: also after a right one, and the right one does not hide it."""
    options = {"TRACK_ORIGINS": True, "TRACK": True}
    with (
        configured("native", RELEASE_OPTIONS=options),
        pytest.raises(ImproperlyConfigured, match="unknown option 'TRACK'; "),
    ):
        backend_pid("configured")


@pytest.mark.parametrize("settings", [{}, {"RELEASE_OPTIONS": {}}])
def test_no_options_are_the_defaults(alias: str, settings: dict[str, Any]) -> None:
    """P4: they need not be there."""
    with configured(alias, **settings) as db:
        backend_pid("configured")
        assert db._lease.options == ReleaseOptions()


def test_every_option_may_be_given(alias: str) -> None:
    """P4: upper-case keys, as the neighbour's POOL_OPTIONS; each with its default."""
    defaults = {field.name.upper(): field.default for field in fields(ReleaseOptions)}
    with configured(alias, RELEASE_OPTIONS=defaults) as db:
        backend_pid("configured")
        assert db._lease.options == ReleaseOptions()
        assert checks.run_checks(databases=["configured"]) == []


# ##### System checks #####


E001 = error(
    1,
    "no connection pool is configured.",
    'Set DATABASES[\'configured\']["OPTIONS"]["pool"] to True or to a dict such as '
    '{"min_size": 2, "max_size": 10}; or to False to do without a pool.',
)


@pytest.mark.parametrize("options", [{}, {"pool": None}, {"pool": {}}])
def test_a_check_finds_that_there_is_no_pool(options: dict[str, Any]) -> None:
    """D7: E001, before any checkout, and without one."""
    assert found("native", OPTIONS=options) == [E001]


def test_a_check_finds_a_conn_max_age() -> None:
    """D7: E002, on the native engine, also beside another problem."""
    e002 = error(
        2,
        "CONN_MAX_AGE is 60, but the pool decides how long a connection lives.",
        'Set DATABASES[\'configured\']["CONN_MAX_AGE"] to 0, and "max_lifetime" in '
        '["OPTIONS"]["pool"] if need be.',
    )
    assert found("native", CONN_MAX_AGE=60) == [e002]
    assert found("native", CONN_MAX_AGE=60, OPTIONS={}) == [E001, e002]
    none = found("native", CONN_MAX_AGE=None)
    assert [message.id for message in none] == ["django_pg_real_pool.E002"]
    assert found("native", CONN_MAX_AGE=60, OPTIONS={"pool": False}) == []
    for alias in ("dj", "own"):
        assert found(alias, CONN_MAX_AGE=60) == []


def test_a_check_finds_the_wrong_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """D7: E003, where Django would have taken psycopg2."""
    engine = type(connections["native"])
    # Django prefers psycopg 3, so that the other driver can't be had beside it.
    monkeypatch.setattr(engine, "Database", ModuleType("psycopg2"))
    assert found("native") == [
        error(
            3,
            "the native pool needs psycopg 3, but the driver is psycopg2.",
            "Install it: pip install 'psycopg[pool]'.",
        )
    ]
    assert found("native", OPTIONS={"pool": False}) == []


@pytest.mark.parametrize(("options", "problem"), WRONG_OPTIONS)
def test_a_check_finds_a_wrong_option(alias: str, options: Any, problem: str) -> None:
    """P4: E004, on every engine, in the same words as at run time."""
    assert found(alias, RELEASE_OPTIONS=options) == [
        error(4, problem, "Correct DATABASES['configured']['RELEASE_OPTIONS'].")
    ]


def test_a_check_finds_each_wrong_option() -> None:
    """P4: not only the first."""
    messages = found("native", RELEASE_OPTIONS={"A": 1, "TRACK_ORIGINS": 2, "B": 3})
    assert [message.id for message in messages] == ["django_pg_real_pool.E004"] * 3


def test_what_is_right_is_not_complained_of(alias: str) -> None:
    """D7: nor is stock."""
    names = [alias, STOCK_OF[alias], "default"]
    assert checks.run_checks(databases=names) == []
    assert connections[alias].connection is None


def test_the_checks_of_the_base_run_too(alias: str) -> None:
    """D6: the base's own validation class is extended, not replaced."""

    class Validation(BaseDatabaseValidation):
        def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
            return [
                *super().check(**kwargs),
                checks.Warning("of the base", id="users.W001"),
            ]

    stock = type(connections[STOCK_OF[alias]])
    base = type("Base", (stock,), {"validation_class": Validation})
    messages = found(alias, make_release_backend(base), RELEASE_OPTIONS={"A": 1})
    assert [message.id for message in messages] == [
        "users.W001",
        "django_pg_real_pool.E004",
    ]
    assert stock.validation_class is not Validation


def test_manage_check_reports_with_a_database_named() -> None:
    """D7: `manage.py check --database`, with nothing in INSTALLED_APPS."""
    with configured("native", OPTIONS={}, RELEASE_OPTIONS={"A": 1}):
        output = StringIO()
        call_command("check", stdout=output)
        assert "no issues" in output.getvalue()
        with pytest.raises(SystemCheckError) as caught:
            call_command("check", databases=["configured"])
        text = str(caught.value)
        assert (
            "(django_pg_real_pool.E001) Database 'configured': no connection pool" in text
        )
        assert f"HINT: {E001.hint}" in text
        assert (
            "(django_pg_real_pool.E004) Database 'configured': unknown option 'A'" in text
        )


def test_migrate_reports_before_it_connects() -> None:
    """D7: `manage.py migrate` stops at the checks, not in the middle."""
    with configured("native", OPTIONS={}) as db:
        with pytest.raises(SystemCheckError, match=r"django_pg_real_pool\.E001"):
            call_command("migrate", database="configured", verbosity=0, skip_checks=False)
        with pytest.raises(
            (ImproperlyConfigured, CommandError), match="No connection pool"
        ):
            call_command("migrate", database="configured", verbosity=0, skip_checks=True)
        assert db.connection is None
