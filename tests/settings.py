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


def native_pool(size: int, timeout: float) -> dict[str, Any]:
    return {"OPTIONS": {"pool": {"min_size": 1, "max_size": size, "timeout": timeout}}}


def queue_pool(size: int, timeout: float) -> dict[str, Any]:
    return {"POOL_OPTIONS": {"POOL_SIZE": size, "MAX_OVERFLOW": 0, "TIMEOUT": timeout}}


#: Which alias has the stock backend that an engine is compared with.
STOCK_OF = {"native": "stock_native", "dj": "stock_dj", "own": "stock_own"}

#: Which alias has the same engine with `AUTOCOMMIT: False`; its stock is "stock_" + that.
MANUAL_OF = {"native": "manual_native", "dj": "manual_dj", "own": "manual_own"}

#: Which alias has the same engine with `"pool": False`; its stock is "stock_" + that.
UNPOOLED_OF = {"native": "unpooled_native", "dj": "unpooled_dj", "own": "unpooled_own"}

DATABASES = {
    "default": database("django_pg_real_pool", **NATIVE),
    "native": database("django_pg_real_pool", **NATIVE),
    "stock_native": database("django.db.backends.postgresql", **NATIVE),
    "dj": database("django_pg_real_pool.dj_db_conn_pool", **QUEUE),
    "stock_dj": database("dj_db_conn_pool.backends.postgresql", **QUEUE),
    "own": database("own_pool"),
    "stock_own": database("own_pool.stock"),
    # A pool of one that gives up at once: to see what happens when there is none left.
    "brief_native": database("django_pg_real_pool", **native_pool(size=1, timeout=0.2)),
    "brief_dj": database("django_pg_real_pool.dj_db_conn_pool", **queue_pool(1, 0.2)),
    "brief_own": database("own_pool"),
    # A pool of four with a long queue before it.
    "busy_native": database("django_pg_real_pool", **native_pool(size=4, timeout=20)),
    "busy_dj": database("django_pg_real_pool.dj_db_conn_pool", **queue_pool(4, 20)),
    "busy_own": database("own_pool"),
}
for _engine, _manual in MANUAL_OF.items():
    for _prefix in ("", "stock_"):
        DATABASES[_prefix + _manual] = {**DATABASES[_prefix + _engine], "AUTOCOMMIT": False}
for _engine, _unpooled in UNPOOLED_OF.items():
    for _prefix in ("", "stock_"):
        DATABASES[_prefix + _unpooled] = {
            **DATABASES[_prefix + _engine],
            "OPTIONS": {"pool": False},
        }
