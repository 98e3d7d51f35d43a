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


#: What the tests go through: an alias, its engine, and the stock one beneath it.
ENGINES = {
    "native": ("django_pg_real_pool", "django.db.backends.postgresql"),
    "dj": ("django_pg_real_pool.dj_db_conn_pool", "dj_db_conn_pool.backends.postgresql"),
    "own": ("own_pool", "own_pool.stock"),
}

#: Which alias has the stock backend that an engine is compared with.
STOCK_OF = {alias: f"stock_{alias}" for alias in ENGINES}

# A neighbour's session lets one alias be an engine made from the neighbour's backend; the
# tests then go through that one alone.
if "REAL_POOL_ENGINE" in os.environ:
    _alias, *_engines = os.environ["REAL_POOL_ENGINE"].split()
    ENGINES[_alias] = (_engines[0], _engines[1])
    STOCK_OF = {_alias: f"stock_{_alias}"}

#: Which alias has the same engine with `AUTOCOMMIT: False`; its stock is "stock_" + that.
MANUAL_OF = {"native": "manual_native", "dj": "manual_dj", "own": "manual_own"}

#: Which alias has the same engine with `"pool": False`; its stock is "stock_" + that.
UNPOOLED_OF = {"native": "unpooled_native", "dj": "unpooled_dj", "own": "unpooled_own"}

SETTINGS_OF: dict[str, dict[str, Any]] = {"native": NATIVE, "dj": QUEUE, "own": {}}

#: Aliases with another pool than their engine's, by what their names begin with: with room
#: for one connection, which gives up at once, to see what happens when there is none left;
#: and with room for four, and a long queue before it.
OTHER_POOLS: dict[str, dict[str, dict[str, Any]]] = {
    "brief": {"native": native_pool(1, 0.2), "dj": queue_pool(1, 0.2), "own": {}},
    "busy": {"native": native_pool(4, 20), "dj": queue_pool(4, 20), "own": {}},
}

DATABASES = {"default": database(ENGINES["native"][0], **NATIVE)}
for _alias, (_engine, _stock) in ENGINES.items():
    DATABASES[_alias] = database(_engine, **SETTINGS_OF[_alias])
    DATABASES[f"stock_{_alias}"] = database(_stock, **SETTINGS_OF[_alias])
    for _kind, _pools in OTHER_POOLS.items():
        DATABASES[f"{_kind}_{_alias}"] = database(_engine, **_pools[_alias])
for _engine, _manual in MANUAL_OF.items():
    for _prefix in ("", "stock_"):
        DATABASES[_prefix + _manual] = {**DATABASES[_prefix + _engine], "AUTOCOMMIT": False}
for _engine, _unpooled in UNPOOLED_OF.items():
    for _prefix in ("", "stock_"):
        DATABASES[_prefix + _unpooled] = {
            **DATABASES[_prefix + _engine],
            "OPTIONS": {"pool": False},
        }
