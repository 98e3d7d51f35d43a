"""D7: the mistakes that people make in a pool's settings, each with its exact words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import django
import psycopg
import pytest
from configured import configured, error, found
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper as StockWrapper
from helpers import backend_pid

from django_pg_real_pool import make_release_backend
from django_pg_real_pool._pool_settings import native_problems, queue_problems, refuse

POOL = 'DATABASES[\'configured\']["OPTIONS"]["pool"]'
POOL_OPTIONS = "DATABASES['configured'][\"POOL_OPTIONS\"]"
VALID = "ECHO, MAX_OVERFLOW, POOL_SIZE, PRE_PING, RECYCLE, TIMEOUT"

#: What stands in `OPTIONS["pool"]`, and the check's number, message and hint.
WRONG_POOLS: list[tuple[Any, int, str, str]] = [
    *(
        (
            value,
            5,
            f'OPTIONS["pool"] must be True, False or a dict, got {value!r}.',
            f'Set {POOL} to True, or to a dict such as {{"min_size": 2, "max_size": 10}}.',
        )
        for value in ("yes", 1, ["min_size"])
    ),
    (
        {"max_sise": 2},
        6,
        "unknown option 'max_sise' in OPTIONS[\"pool\"].",
        f"Write 'max_size' in {POOL}.",
    ),
    (
        {"MIN_SIZE": 2},
        6,
        "unknown option 'MIN_SIZE' in OPTIONS[\"pool\"].",
        f"Write 'min_size' in {POOL}.",
    ),
    *(
        (
            {key: None},
            6,
            f'option {key!r} in OPTIONS["pool"] is one that Django sets itself.',
            f"Remove it from {POOL}.",
        )
        for key in ("kwargs", "open", "configure")
    ),
    (
        {"min_size": 5, "max_size": 2},
        7,
        'min_size is 5 in OPTIONS["pool"], but max_size is 2.',
        f'Lower {POOL}["min_size"] or raise ["max_size"].',
    ),
    (
        {"max_size": 2},
        7,
        'max_size is 2 in OPTIONS["pool"], but min_size is not set, and its default is 4.',
        f'Set {POOL}["min_size"] to 2 or less.',
    ),
    (
        {"min_size": 0},
        7,
        'min_size is 0 in OPTIONS["pool"], and max_size is not set, so there is room for '
        + "no connection.",
        f'Set {POOL}["max_size"] to 1 or more.',
    ),
    (
        {"min_size": 0, "max_size": 0},
        7,
        'min_size is 0 in OPTIONS["pool"], and max_size is 0, so there is room for '
        + "no connection.",
        f'Set {POOL}["max_size"] to 1 or more.',
    ),
    *(
        (
            {"min_size": 1, key: value},
            7,
            f'{key} in OPTIONS["pool"] must be a {kind}, {least} or more, got {value!r}.',
            f'Correct {POOL}["{key}"].',
        )
        for key, value, least, kind in [
            ("max_size", "10", 0, "whole number"),
            ("max_size", -1, 0, "whole number"),
            ("max_size", 1.5, 0, "whole number"),
            ("min_size", None, 0, "whole number"),
            ("min_size", True, 0, "whole number"),
            ("min_size", 1.5, 0, "whole number"),
            ("timeout", "30", 0, "number"),
            ("max_lifetime", float("nan"), 0, "number"),
            ("num_workers", 0, 1, "whole number"),
        ]
    ),
    (
        {"connection_class": "psycopg.Connection"},
        7,
        "connection_class in OPTIONS[\"pool\"] must be a class, got 'psycopg.Connection'.",
        f'Correct {POOL}["connection_class"].',
    ),
]

RIGHT_POOLS = [
    True,
    {"min_size": 0, "max_size": 1},
    {"min_size": 2},
    {"min_size": 2, "max_size": None},
    {"min_size": 4, "max_size": 4, "timeout": 0.5, "close_returns": False, "name": "p"},
    {"reset": print, "reconnect_failed": print, "min_size": 1},
    {"connection_class": psycopg.Connection, "min_size": 1, "max_idle": 60},
]

#: The same for `POOL_OPTIONS`.
WRONG_POOL_OPTIONS = [
    (
        {"pool_size": 3},
        "unknown option 'pool_size' in POOL_OPTIONS, which django-db-connection-pool ignores.",
        f"Write 'POOL_SIZE' in {POOL_OPTIONS}.",
    ),
    (
        {"MAX_OVERFLOWS": 3},
        "unknown option 'MAX_OVERFLOWS' in POOL_OPTIONS, which "
        + "django-db-connection-pool ignores.",
        f"Write 'MAX_OVERFLOW' in {POOL_OPTIONS}.",
    ),
    (
        {"min_size": 3},
        "unknown option 'min_size' in POOL_OPTIONS, which django-db-connection-pool ignores.",
        f"Remove it from {POOL_OPTIONS}. Valid options are: {VALID}.",
    ),
    *(
        (
            {key: value},
            f"{key} in POOL_OPTIONS must be a {kind}, got {value!r}.",
            f'Correct {POOL_OPTIONS}["{key}"].',
        )
        for key, value, kind in [
            ("POOL_SIZE", "two", "whole number"),
            ("MAX_OVERFLOW", None, "whole number"),
            ("RECYCLE", True, "number"),
            ("TIMEOUT", "30", "number"),
        ]
    ),
]

NO_DICTS = [["POOL_SIZE"], None, "yes"]
DICT = f'Set {POOL_OPTIONS} to a dict such as {{"POOL_SIZE": 10, "MAX_OVERFLOW": 0}}.'


def refused(use: Callable[[], Any]) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        use()
    return str(caught.value)


# ##### psycopg_pool #####


@pytest.mark.parametrize(("pool", "number", "message", "hint"), WRONG_POOLS)
def test_a_check_finds_what_psycopg_pool_would_refuse(
    pool: Any, number: int, message: str, hint: str
) -> None:
    """D7: E005 to E007, without a checkout."""
    assert found("native", OPTIONS={"pool": pool}) == [error(number, message, hint)]


@pytest.mark.parametrize(("pool", "number", "message", "hint"), WRONG_POOLS)
def test_it_is_refused_in_the_same_words(
    pool: Any, number: int, message: str, hint: str
) -> None:
    """D7: alias, setting and remedy."""
    problems = native_problems("configured", {"OPTIONS": {"pool": pool}})
    assert refused(lambda: refuse("configured", problems)) == (
        f"Database 'configured': {message} {hint}"
    )


@pytest.mark.parametrize(("pool", "number", "message", "hint"), WRONG_POOLS)
def test_the_first_query_refuses_it(
    pool: Any, number: int, message: str, hint: str
) -> None:
    """D7: no bare ValueError or TypeError; and it can be mended."""
    with configured("native", OPTIONS={"pool": pool}) as db:
        assert refused(lambda: backend_pid("configured")) == (
            f"Database 'configured': {message} {hint}"
        )
        with pytest.raises(ImproperlyConfigured), transaction.atomic("configured"):
            backend_pid("configured")
        assert db.connection is None
        db.settings_dict["OPTIONS"]["pool"] = {"min_size": 1}
        assert backend_pid("configured") > 0


@pytest.mark.parametrize("pool", RIGHT_POOLS)
def test_what_psycopg_pool_takes_is_not_complained_of(pool: Any) -> None:
    """D7: as far as the signature of the installed version goes."""
    pytest.importorskip("psycopg_pool", "3.2.5")  # which has close_returns
    assert list(native_problems("default", {"OPTIONS": {"pool": pool}})) == []


@pytest.mark.parametrize("options", [{}, {"pool": None}, {"pool": False}, {"pool": {}}])
def test_of_no_pool_nothing_is_said(options: dict[str, Any]) -> None:
    """D7: that there is none is E001's business."""
    assert list(native_problems("default", {"OPTIONS": options})) == []


def test_where_nothing_is_wrong_nothing_is_refused() -> None:
    """D7: the adapters of the pools may always ask."""
    refuse("default", [])


def test_each_wrong_key_of_the_pool_is_reported() -> None:
    """D7: and a wrong number as well, but no comparison with it."""
    pool = {"max_sise": 2, "nothing_like_it": 1, "min_size": "9", "max_size": 3}
    messages = found("native", OPTIONS={"pool": pool})
    assert [str(each.id)[-4:] for each in messages] == ["E006", "E006", "E007"]


def test_a_key_that_is_near_to_none_is_told_the_valid_ones() -> None:
    """D7: those of the installed psycopg_pool, less what Django sets."""
    pool = {"nothing_like_it": 1}
    (problem,) = native_problems("configured", {"OPTIONS": {"pool": pool}})
    assert problem.message == "unknown option 'nothing_like_it' in OPTIONS[\"pool\"]."
    assert problem.remedy.startswith(f"Remove it from {POOL}. Valid options are: ")
    valid = problem.remedy.partition("are: ")[2].rstrip(".").split(", ")
    assert valid == sorted(valid)
    assert {"conninfo", "connection_class", "max_size", "min_size", "reset"} <= {*valid}
    assert not {"self", "kwargs", "open", "configure"} & {*valid}
    assert ("check" in valid) == (django.VERSION >= (6, 1))


def test_a_check_finds_that_psycopg_has_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """D7: E008, whatever else the settings say."""
    monkeypatch.setitem(sys.modules, "psycopg_pool", None)
    e008 = error(
        8,
        "the native pool needs psycopg_pool, which is not installed.",
        "Install it: pip install 'psycopg[pool]'.",
    )
    for pool in (True, {"max_sise": 2}):
        assert found("native", OPTIONS={"pool": pool}) == [e008]
    assert found("native", OPTIONS={"pool": False}) == []


def test_the_first_query_says_that_psycopg_has_no_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D7: no ModuleNotFoundError."""
    with configured("native") as db:
        monkeypatch.setitem(sys.modules, "psycopg_pool", None)
        assert refused(lambda: backend_pid("configured")) == (
            "Database 'configured': the native pool needs psycopg_pool, which is not "
            "installed. Install it: pip install 'psycopg[pool]'."
        )
        assert db.connection is None
        monkeypatch.undo()
        assert backend_pid("configured") > 0


def overriding(name: str) -> Any:
    """Make an engine of Django's, whose base gets its connections in its own way."""
    base: Any = type("Base", (StockWrapper,), {"__module__": "a_users.base"})
    inherited = getattr(StockWrapper, name)
    setattr(base, name, lambda self, *args: inherited(self, *args))
    getattr(base, name).__module__ = "a_users.base"
    return make_release_backend(base)


@pytest.mark.parametrize("name", ["get_connection_params", "get_new_connection"])
@pytest.mark.parametrize(
    ("pool", "number", "message", "hint"), [WRONG_POOLS[0], WRONG_POOLS[3], WRONG_POOLS[8]]
)
def test_a_check_finds_it_where_a_base_gets_its_connections_by_itself(
    name: str, pool: Any, number: int, message: str, hint: str
) -> None:
    """D7: they come from Django's pool in the end."""
    engine = overriding(name)
    assert found("native", engine, OPTIONS={"pool": pool}) == [error(number, message, hint)]
    with configured("native", engine, OPTIONS={"pool": pool}):
        assert refused(lambda: backend_pid("configured")) == (
            f"Database 'configured': {message} {hint}"
        )


# ##### django-db-connection-pool #####


@pytest.mark.parametrize(("options", "message", "hint"), WRONG_POOL_OPTIONS)
def test_a_check_finds_what_the_other_pool_would_ignore(
    options: dict[str, Any], message: str, hint: str
) -> None:
    """D7: E010, without a checkout."""
    given = {"POOL_SIZE": 1, **options}
    assert found("dj", POOL_OPTIONS=given) == [error(10, message, hint)]
    assert refused(
        lambda: refuse("configured", queue_problems("configured", {"POOL_OPTIONS": given}))
    ) == (f"Database 'configured': {message} {hint}")


@pytest.mark.parametrize(("options", "message", "hint"), WRONG_POOL_OPTIONS)
def test_the_first_query_does_not_ignore_it(
    options: dict[str, Any], message: str, hint: str
) -> None:
    """D7: and it can be mended."""
    with configured("dj", POOL_OPTIONS=options) as db:
        assert refused(lambda: backend_pid("configured")) == (
            f"Database 'configured': {message} {hint}"
        )
        assert db.connection is None
        db.settings_dict["POOL_OPTIONS"] = {"POOL_SIZE": 1}
        assert backend_pid("configured") > 0


@pytest.mark.parametrize("options", NO_DICTS)
def test_pool_options_that_are_no_dict_are_refused(options: Any) -> None:
    """D7: by the check, and by the first query."""
    message = f"POOL_OPTIONS must be a dict, got {options!r}."
    assert found("dj", POOL_OPTIONS=options) == [error(10, message, DICT)]
    with configured("dj", POOL_OPTIONS=options) as db:
        assert refused(lambda: backend_pid("configured")) == (
            f"Database 'configured': {message} {DICT}"
        )
        assert db.connection is None


def test_what_the_other_pool_takes_is_not_complained_of() -> None:
    """D7: the keys are the installed package's own."""
    from dj_db_conn_pool.core import pool_container

    options = {
        key.upper(): value for key, value in pool_container.pool_default_params.items()
    }
    assert found("dj", POOL_OPTIONS=options) == []
    assert list(queue_problems("configured", {})) == []


# ##### A setting within OPTIONS #####


@pytest.mark.parametrize("setting", ["RELEASE_OPTIONS", "POOL_OPTIONS"])
def test_a_setting_within_options_is_found(alias: str, setting: str) -> None:
    """P4: E009, on every engine, and the first use refuses it in the same words."""
    options = {**connections[alias].settings_dict["OPTIONS"], setting: {}}
    message = f"{setting} is in OPTIONS, whose keys go to the driver."
    hint = f"Move it to DATABASES['configured']['{setting}']."
    assert found(alias, OPTIONS=options) == [error(9, message, hint)]
    with configured(alias, OPTIONS=options) as db:
        assert refused(lambda: backend_pid("configured")) == (
            f"DATABASES['configured']: {message} {hint}"
        )
        assert db.connection is None
        del db.settings_dict["OPTIONS"][setting]
        assert backend_pid("configured") > 0


def test_errors_in_the_settings_come_without_the_server() -> None:
    """D7: nobody is asked about a pool that can't be."""
    messages = found("native", OPTIONS={"pool": {"max_size": 2}}, HOST="nowhere.invalid")
    assert [each.level for each in messages] == [checks.ERROR]
