"""A Django project with one table, on as many aliases as a measurement needs."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import django
from django.conf import settings
from django.db import connections, models

#: Name -> ENGINE, and the engine that it is measured against.
ENGINES = {
    "stock": "django.db.backends.postgresql",
    "ours": "django_pg_real_pool",
    "dj_stock": "dj_db_conn_pool.backends.postgresql",
    "dj_ours": "django_pg_real_pool.dj_db_conn_pool",
}
STOCK_OF = {"ours": "stock", "dj_ours": "dj_stock"}


def database(name: str, connections: int | None, **more: Any) -> dict[str, Any]:
    """Return the settings of an alias, with a pool of so many connections, or none."""
    pool: dict[str, Any]
    if connections is None:
        pool = {}
    elif name.startswith("dj_"):
        pool = {"POOL_OPTIONS": {"POOL_SIZE": connections, "MAX_OVERFLOW": 0}}
    else:
        pool = {"OPTIONS": {"pool": {"min_size": connections, "max_size": connections}}}
    return {
        "ENGINE": ENGINES[name],
        "NAME": os.environ["PGDATABASE"],
        "USER": os.environ.get("PGUSER", ""),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "HOST": os.environ.get("PGHOST", ""),
        "PORT": os.environ.get("PGPORT", ""),
        **pool,
        **more,
    }


def set_up(databases: dict[str, dict[str, Any]]) -> None:
    settings.configure(USE_TZ=True, DATABASES=databases)
    django.setup()


def model() -> Any:
    """Return the one model.  It can be defined only once Django is set up."""

    class Thing(models.Model):
        name = models.CharField(max_length=50)
        number = models.IntegerField()

        objects: ClassVar[models.Manager[Any]] = models.Manager()

        class Meta:
            app_label = "bench"

    return Thing


def create_table(thing: Any, alias: str = "default", rows: int = 100) -> None:
    with connections[alias].schema_editor() as editor:
        editor.create_model(thing)
    thing.objects.using(alias).bulk_create(
        thing(name=f"thing {number}", number=number) for number in range(rows)
    )
