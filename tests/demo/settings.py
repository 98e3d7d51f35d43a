"""Settings of the demo's site.  `DEMO_ENGINE` is all that its two runs differ in."""

from __future__ import annotations

import os

CONNECTIONS = 4

SECRET_KEY = "demo"
ALLOWED_HOSTS = ["*"]
DEBUG_PROPAGATE_EXCEPTIONS = True
ROOT_URLCONF = "demo.site"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    "default": {
        "ENGINE": os.environ["DEMO_ENGINE"],
        "NAME": os.environ["PGDATABASE"],
        "USER": os.environ.get("PGUSER", ""),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "HOST": os.environ.get("PGHOST", ""),
        "PORT": os.environ.get("PGPORT", ""),
        "OPTIONS": {"pool": {"min_size": CONNECTIONS, "max_size": CONNECTIONS}},
    }
}
