"""D8, D9, P5: what the factory makes and refuses, and what importing it takes."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper
from helpers import DEADLINE
from own_pool.stock.base import DatabaseWrapper as OwnStock
from places import PYTHON_PATH
from settings import DATABASES, STOCK_OF

import django_pg_real_pool
from django_pg_real_pool import ConnectionReleaseMixin, make_release_backend
from django_pg_real_pool._pools.native import DjangosPool, NativePool

WANTED = "make_release_backend() needs a Django DatabaseWrapper class"


def new_base(**namespace: Any) -> Any:
    return type("UsersWrapper", (OwnStock,), {"__module__": "users.base", **namespace})


# ##### D8: what is made #####


def test_each_engine_is_named_after_its_place(alias: str) -> None:
    """D8: the name, module and docstring are true, so that the class can be found."""
    made, stock = type(connections[alias]), type(connections[STOCK_OF[alias]])
    module = f"{DATABASES[alias]['ENGINE']}.base"
    assert issubclass(made, stock)
    assert issubclass(made, ConnectionReleaseMixin)
    assert (made.__module__, made.__qualname__) == (module, "DatabaseWrapper")
    assert made.__name__ == "DatabaseWrapper"
    assert getattr(sys.modules[module], "DatabaseWrapper") is made  # noqa: B009
    assert pickle.loads(pickle.dumps(made)) is made
    assert made.__doc__ == (
        f"{stock.__module__}.DatabaseWrapper, releasing its connection as soon as "
        "possible.\n\nMade by django_pg_real_pool.make_release_backend()."
    )


def test_a_made_class_has_the_name_of_its_base_and_the_module_of_its_maker() -> None:
    """D8: whatever they are called."""
    base = new_base(__qualname__="Outer.UsersWrapper")
    made: Any = make_release_backend(base)
    assert made.__name__ == made.__qualname__ == "UsersWrapper"
    assert made.__module__ == __name__
    assert made.__doc__.startswith("users.base.Outer.UsersWrapper, releasing ")
    assert made.__mro__.index(ConnectionReleaseMixin) < made.__mro__.index(base)
    assert base.__module__ == "users.base"
    assert not issubclass(base, ConnectionReleaseMixin)


def test_the_same_base_gives_the_same_class() -> None:
    """D8: and another base another class."""
    one, other = new_base(), new_base()
    assert make_release_backend(one) is make_release_backend(one)
    assert make_release_backend(one) is not make_release_backend(other)
    assert make_release_backend(OwnStock) is type(connections["own"])


def test_threads_that_call_at_once_get_one_class() -> None:
    """D8: the same base gives the same class, whoever asks first."""
    threads, made = 8, []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            base = new_base()
            together = threading.Barrier(threads)

            def call(base: Any = base, together: threading.Barrier = together) -> None:
                together.wait(DEADLINE)
                made.append(make_release_backend(base))

            callers = [threading.Thread(target=call) for _ in range(threads)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join(DEADLINE)
    finally:
        sys.setswitchinterval(interval)
    assert len(made) == 30 * threads
    assert len(set(made)) == 30


def test_the_base_is_left_as_it_was(alias: str) -> None:
    """D8: a project may use both the engine and its stock."""
    stock: Any = type(connections[STOCK_OF[alias]])
    before = dict(vars(stock))
    make_release_backend(stock)
    assert dict(vars(stock)) == before
    assert "django_pg_real_pool" not in {
        each.__module__.partition(".")[0] for each in stock.validation_class.__mro__
    }
    assert "django_pg_real_pool" not in {
        each.__module__.partition(".")[0] for each in stock.SchemaEditorClass.__mro__
    }


# ##### D6: what the author of an engine says #####


def test_the_same_said_of_the_same_base_gives_the_same_class() -> None:
    """D8: in whatever order it is said."""
    base = new_base()
    names = ["get_new_connection", "init_connection_state"]
    made = make_release_backend(base, once_per_connection=names)
    assert made is make_release_backend(base, once_per_connection=names[::-1])
    assert made is not make_release_backend(base)
    assert make_release_backend(base) is make_release_backend(base, once_per_connection=())


@pytest.mark.parametrize("said", ["to the factory", "by the base", "by hand"])
def test_an_override_may_be_said_to_be_about_a_connection(said: str) -> None:
    """D6: then the pool beneath it is known again, and set-up runs for new ones only."""
    hooks = ("get_new_connection", "get_connection_params", "init_connection_state")
    namespace: dict[str, Any] = {name: lambda self, *args: None for name in hooks} | {
        "__module__": "users.base"
    }
    stock: Any = type(connections["stock_native"])
    once: dict[str, Any] = {"once_per_connection": hooks}

    plain: Any = make_release_backend(type("Plain", (stock,), dict(namespace)))
    assert type(plain._hooks.pool) is DjangosPool
    assert plain._hooks.init_every_time

    made: Any
    if said == "to the factory":
        made = make_release_backend(type("Base", (stock,), namespace), **once)
    elif said == "by the base":
        made = make_release_backend(type("Base", (stock,), namespace | once))
    else:
        base = type("Base", (stock,), namespace)
        made = type("Made", (ConnectionReleaseMixin, base), dict(once))
    assert type(made._hooks.pool) is NativePool
    assert not made._hooks.init_every_time


def test_what_can_not_be_said_is_refused() -> None:
    """D8: with what can be; and the base can be used all the same."""
    base = new_base()
    with pytest.raises(ImproperlyConfigured) as caught:
        make_release_backend(base, once_per_connection=["close", "cursor"])
    assert str(caught.value).endswith(
        "once_per_connection can't have 'close', 'cursor'; valid names are: "
        "get_connection_params, get_new_connection, init_connection_state."
    )
    with pytest.raises(ImproperlyConfigured) as caught:
        make_release_backend(base, once_per_connection="get_new_connection")
    assert str(caught.value).endswith(
        "once_per_connection is 'get_new_connection'; pass a list of names: "
        "['get_new_connection']."
    )
    make_release_backend(base, once_per_connection=["get_new_connection"])


# ##### D8: what is refused #####


class AnInstance:
    def __repr__(self) -> str:
        return "<something>"


def some_function() -> None:
    """Not a class."""


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (None, "None"),
        (42, "42"),
        ("django.db.backends.postgresql", "'django.db.backends.postgresql'"),
        (AnInstance(), "<something>"),
        (some_function, repr(some_function)),
    ],
)
def test_what_is_no_class_is_refused(given: Any, named: str) -> None:
    """D8: a TypeError that says what was given, and what is wanted."""
    with pytest.raises(TypeError) as caught:
        make_release_backend(given)
    assert str(caught.value) == f"{WANTED}, not {named}."


@pytest.mark.parametrize(
    ("given", "named"),
    [(dict, "builtins.dict"), (AnInstance, f"{__name__}.AnInstance")],
)
def test_a_class_that_is_no_wrapper_is_refused(given: Any, named: str) -> None:
    """D8: the same."""
    with pytest.raises(TypeError) as caught:
        make_release_backend(given)
    assert str(caught.value) == (
        f"{WANTED}, a subclass of django.db.backends.base.base.BaseDatabaseWrapper; "
        f"{named} is not one."
    )


def test_a_wrapper_in_the_place_of_its_class_is_refused(alias: str) -> None:
    """D8: `connection` is easily given for `type(connection)`."""
    wrapper = connections[STOCK_OF[alias]]
    with pytest.raises(TypeError) as caught:
        make_release_backend(wrapper)  # type: ignore[arg-type]
    assert str(caught.value) == f"{WANTED}, not {wrapper!r}."


def test_a_made_class_is_refused(alias: str) -> None:
    """D8: nothing is made twice over; nor is what was made by hand, or extended."""
    made = type(connections[alias])
    extended = type("Extended", (made,), {})
    by_hand = type("ByHand", (ConnectionReleaseMixin, new_base()), {})
    for given in (made, extended, by_hand):
        with pytest.raises(TypeError) as caught:
            make_release_backend(given)
        name = f"{given.__module__}.{given.__qualname__}"
        assert str(caught.value) == (
            f"{WANTED}, but {name} was already made by make_release_backend()."
        )
    with pytest.raises(TypeError, match=r"was already made by make_release_backend\(\)"):
        make_release_backend(ConnectionReleaseMixin)


def test_an_abstract_base_is_refused() -> None:
    """D8: ImproperlyConfigured names all that is missing."""
    with pytest.raises(ImproperlyConfigured) as caught:
        make_release_backend(BaseDatabaseWrapper)
    assert str(caught.value) == (
        f"{WANTED} that is complete, but "
        "django.db.backends.base.base.BaseDatabaseWrapper lacks: get_new_connection, "
        "get_connection_params, create_cursor, _set_autocommit, Database."
    )


def test_a_base_that_lacks_one_thing_is_refused() -> None:
    """D8: and only that is named."""
    complete = {
        name: vars(PostgreSQLWrapper)[name]
        for name in ("get_new_connection", "get_connection_params", "create_cursor")
    }
    base = type("Base", (BaseDatabaseWrapper,), {**complete, "Database": sys})
    with pytest.raises(ImproperlyConfigured) as caught:
        make_release_backend(base)
    assert str(caught.value) == (
        f"{WANTED} that is complete, but {__name__}.Base lacks: _set_autocommit."
    )


def test_nothing_half_made_is_left_behind() -> None:
    """D8: after a refusal there is no new class, and the base can be completed."""
    base: Any = type("Base", (BaseDatabaseWrapper,), {})
    before = set(ConnectionReleaseMixin.__subclasses__())
    refused: list[Any] = [base, None, dict, type(connections["own"])]
    for given in refused:
        with pytest.raises((TypeError, ImproperlyConfigured)):
            make_release_backend(given)
    gc.collect()
    assert set(ConnectionReleaseMixin.__subclasses__()) == before
    assert base.__subclasses__() == []
    for name in ("get_new_connection", "get_connection_params", "create_cursor"):
        setattr(base, name, vars(PostgreSQLWrapper)[name])
    base._set_autocommit = vars(PostgreSQLWrapper)["_set_autocommit"]
    base.Database = vars(PostgreSQLWrapper)["Database"]
    assert issubclass(make_release_backend(base), base)


# ##### D9: in a fresh interpreter #####

#: Put before a program: makes a package as absent as if it were not installed.
WITHOUT = "import sys; sys.modules.update(dict.fromkeys({names!r}))\n"


def run(program: str, without: tuple[str, ...] = (), **environment: str) -> str:
    """Run a program in an interpreter that has no settings; return what it printed."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DJANGO_SETTINGS_MODULE", "COVERAGE_PROCESS_START")
    }
    package = Path(django_pg_real_pool.__file__).parent.parent
    environ["PYTHONPATH"] = os.pathsep.join([str(package), PYTHON_PATH])
    completed = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            WITHOUT.format(names=list(without)) + program,
        ],
        cwd=Path(__file__).parent,  # not where the checkout would hide the wheel
        capture_output=True,
        text=True,
        env={**environ, **environment},
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


DRIVERS = ("psycopg", "psycopg_pool", "psycopg2", "sqlalchemy", "dj_db_conn_pool")


def test_the_package_needs_neither_settings_nor_a_driver() -> None:
    """D9: every public name is there; a module of the user's may decorate with them."""
    printed = run(
        textwrap.dedent(
            """
            import django_pg_real_pool
            from django.conf import settings

            @django_pg_real_pool.pin_connection
            def one():
                pass

            @django_pg_real_pool.pin_connection("other")
            def two():
                pass

            try:
                django_pg_real_pool.make_release_backend(42)
            except TypeError as error:
                print(error)
            print(all(hasattr(django_pg_real_pool, n) for n in django_pg_real_pool.__all__))
            print(settings.configured)
            print("django.db.backends.postgresql.base" in sys.modules)
            """
        ),
        without=DRIVERS,
    )
    assert printed.splitlines() == [f"{WANTED}, not 42.", "True", "False", "False"]


def test_the_package_imports_no_driver_that_there_is() -> None:
    """D9: nor does it where one is installed, which would cost time and choose it."""
    printed = run(
        "import django_pg_real_pool\n"
        f"print([name for name in {DRIVERS!r} if name in sys.modules])"
    )
    assert printed.strip() == "[]"


def test_the_factory_serves_a_base_of_another_driver() -> None:
    """D9: without psycopg, a wrapper class of any database can be made to release."""
    printed = run(
        textwrap.dedent(
            """
            from django.db.backends.sqlite3.base import DatabaseWrapper
            from django_pg_real_pool import ConnectionReleaseMixin, make_release_backend
            made = make_release_backend(DatabaseWrapper)
            print(issubclass(made, DatabaseWrapper), issubclass(made, ConnectionReleaseMixin))
            """
        ),
        without=DRIVERS,
    )
    assert printed.split() == ["True", "True"]


EXTRA_MISSING = (
    'ENGINE = "django_pg_real_pool.dj_db_conn_pool" needs django-db-connection-pool '
    "({}). Install it: pip install django-db-connection-pool"
)


@pytest.mark.parametrize("missing", ["dj_db_conn_pool", "sqlalchemy"])
def test_the_missing_extra_is_named_with_its_remedy(missing: str) -> None:
    """D9: ImproperlyConfigured with the install line, as Django loads the engine."""
    printed = run(
        textwrap.dedent(
            """
            from django.conf import settings
            engine = "django_pg_real_pool.dj_db_conn_pool"
            settings.configure(DATABASES={"default": {"ENGINE": engine, "NAME": "x"}})
            from django.core.exceptions import ImproperlyConfigured
            from django.db import connection
            try:
                connection.cursor()
            except ImproperlyConfigured as error:
                print(error)
                print(isinstance(error.__cause__, ImportError))
            """
        ),
        without=(missing,),
    )
    text, is_caused_by_import = printed.splitlines()
    start, end = EXTRA_MISSING.split("{}")
    assert text.startswith(start)
    assert text.endswith(end)
    assert missing in text[len(start) : -len(end)]
    assert is_caused_by_import == "True"


def test_the_native_engine_needs_no_extra() -> None:
    """D9: it loads, and makes a wrapper, where the other pool is not installed."""
    printed = run(
        textwrap.dedent(
            """
            from django.conf import settings
            engine = "django_pg_real_pool"
            settings.configure(DATABASES={"default": {"ENGINE": engine, "NAME": "x"}})
            from django.db import connection
            print(connection.vendor, connection.connection)
            """
        ),
        without=("dj_db_conn_pool", "sqlalchemy"),
    )
    assert printed.split() == ["postgresql", "None"]
