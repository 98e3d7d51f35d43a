"""D9: what is installed, and that it is what the tests have imported."""

from __future__ import annotations

import inspect
import os
import re
import sysconfig
from importlib import metadata
from pathlib import Path

from places import CHECKOUT

import django_pg_real_pool

NAME = "django-pg-real-pool"
PACKAGE = Path(django_pg_real_pool.__file__).parent

#: Set by the sessions that test the wheel: importing the checkout would prove nothing.
EXPECTS_WHEEL = os.environ.get("REAL_POOL_EXPECT_WHEEL") == "1"


def test_the_package_under_test_is_the_one_that_is_meant() -> None:
    """D9: the installed wheel where a session says so, else the checkout."""
    site_packages = Path(sysconfig.get_path("purelib"))
    if EXPECTS_WHEEL:
        assert site_packages / "django_pg_real_pool" == PACKAGE
    else:
        assert PACKAGE == CHECKOUT / "django_pg_real_pool"


def test_the_wheel_has_the_package_and_nothing_else() -> None:
    """D9: every module and the mark of types are in it; tests and documents are not."""
    installed = {path.as_posix() for path in metadata.files(NAME) or ()}
    assert not [path for path in installed if "tests" in Path(path).parts]
    assert not [path for path in installed if "docs" in Path(path).parts]
    if EXPECTS_WHEEL:
        tops = {Path(path).parts[0] for path in installed}
        version = metadata.version(NAME)
        assert tops == {"django_pg_real_pool", f"django_pg_real_pool-{version}.dist-info"}
        sources = CHECKOUT / "django_pg_real_pool"
        expected = {
            path.relative_to(CHECKOUT).as_posix()
            for path in sources.rglob("*")
            if path.suffix in {".html", ".py", ".typed"}
        }
        packed = {path for path in installed if path.startswith("django_pg_real_pool/")}
        assert {path for path in packed if "__pycache__" not in path} == expected
    assert any(path.endswith("licenses/LICENSE") for path in installed)


def test_the_package_says_that_it_is_typed() -> None:
    """D9: `py.typed` lies beside the modules."""
    assert (PACKAGE / "py.typed").is_file()


def test_the_metadata_say_what_is_needed() -> None:
    """D9: Django and psycopg's pool always, the other pool as an extra."""
    found = metadata.metadata(NAME)
    assert found["Name"] == NAME
    assert found["License-Expression"] == "MIT"
    assert found.get_all("Provides-Extra") == [
        *("dj-db-conn-pool", "opentelemetry", "prometheus"),
    ]
    needed: list[str] = []
    extra: list[str] = []
    for requirement in metadata.requires(NAME) or ():
        (extra if "extra ==" in requirement else needed).append(requirement)
    assert {re.split(r"[>\[]", each)[0] for each in needed} == {
        "django",
        "psycopg",
        "psycopg-pool",
    }
    assert "django-db-connection-pool" in {re.split(r"[>\[]", each)[0] for each in extra}


def test_what_is_exported_is_listed() -> None:
    """P5: `__all__` is sorted and complete, and each name has a docstring."""
    names = django_pg_real_pool.__all__
    assert sorted(names) == list(names)
    public = {
        name
        for name, thing in vars(django_pg_real_pool).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }
    assert public == set(names)
    assert all(inspect.getdoc(getattr(django_pg_real_pool, name)) for name in names)
    for name in ("ConnectionReleaseMixin", "AutoConnectionReleaseCursor"):
        assert name in names
