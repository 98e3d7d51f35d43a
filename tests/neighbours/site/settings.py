"""Settings of the site.  Its test says by `SITE_ALIAS` which backend it is to have."""

from __future__ import annotations

import os
from typing import Any

from settings import DATABASES as OF_TESTS
from settings import database, native_pool, queue_pool

SECRET_KEY = "neighbours"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
INSTALLED_APPS = ["neighbours.site"]
if os.environ.get("SITE_METRICS"):
    INSTALLED_APPS += ["django_prometheus", "django_pg_real_pool.contrib.prometheus"]
ROOT_URLCONF = "neighbours.site.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

_ALIAS = os.environ.get("SITE_ALIAS", "native")
_SIZE = int(os.environ.get("SITE_POOL_SIZE", "2"))
_TIMEOUT = float(os.environ.get("SITE_POOL_TIMEOUT", "30"))
#: What the server calls its connections: who looks from outside tells them by it.
_NAME = {"application_name": os.environ.get("SITE_NAME", "site")}

_pool: dict[str, Any] = (
    queue_pool(_SIZE, _TIMEOUT) if _ALIAS.endswith("dj") else native_pool(_SIZE, _TIMEOUT)
)
if _SIZE == 0:
    _pool["OPTIONS"]["pool"] = False
_pool["OPTIONS"] = {**_pool.get("OPTIONS", {}), **_NAME}

DATABASES = {"default": database(OF_TESTS[_ALIAS]["ENGINE"], **_pool)}

# Errors go into the process's log, which the test shows when it fails.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

# Celery's, which looks for them here.
CELERY_BROKER_URL = "filesystem://"
_FOLDER = os.environ.get("SITE_BROKER", ".")
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "data_folder_in": f"{_FOLDER}/messages",
    "data_folder_out": f"{_FOLDER}/sent",
    "control_folder": f"{_FOLDER}/control",
    "polling_interval": 0.02,
}
CELERY_RESULT_BACKEND = f"file://{_FOLDER}/results"
