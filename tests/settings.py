"""Django settings of the tests: each engine with a small pool, beside its own stock."""

from __future__ import annotations

import os
from typing import Any

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS: list[str] = []
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def database(engine: str, **settings: Any) -> dict[str, Any]:
    return {
        "ENGINE": engine,
        "NAME": os.environ.get("PGDATABASE", ""),
        "USER": os.environ.get("PGUSER", ""),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "HOST": os.environ.get("PGHOST", ""),
        "PORT": os.environ.get("PGPORT", ""),
        **settings,
    }


NATIVE = {"OPTIONS": {"pool": {"min_size": 1, "max_size": 2, "timeout": 5}}}
QUEUE = {"POOL_OPTIONS": {"POOL_SIZE": 2, "MAX_OVERFLOW": 0, "TIMEOUT": 5}}

#: Which alias has the stock backend that an engine is compared with.
STOCK_OF = {"native": "stock_native", "dj": "stock_dj", "own": "stock_own"}

DATABASES = {
    "default": database("django_pg_real_pool", **NATIVE),
    "native": database("django_pg_real_pool", **NATIVE),
    "stock_native": database("django.db.backends.postgresql", **NATIVE),
    "dj": database("django_pg_real_pool.dj_db_conn_pool", **QUEUE),
    "stock_dj": database("dj_db_conn_pool.backends.postgresql", **QUEUE),
    "own": database("own_pool"),
    "stock_own": database("own_pool.stock"),
}
