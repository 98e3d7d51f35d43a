"""The site's settings, or the same with the pool of django-db-geventpool."""

from __future__ import annotations

import os

from neighbours.site.settings import *
from neighbours.site.settings import DATABASES

if "SITE_GEVENTPOOL" in os.environ:
    _options = DATABASES["default"]["OPTIONS"]
    _size = _options.pop("pool")["max_size"]
    _options |= {"MAX_CONNS": _size, "REUSE_CONNS": _size}
    DATABASES["default"]["ENGINE"] = "django_db_geventpool.backends.postgresql_psycopg3"
