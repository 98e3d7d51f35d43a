"""Django settings with django-postgres-extra, as its documentation has them."""

from __future__ import annotations

from settings import *

INSTALLED_APPS = ["django.contrib.postgres", "psqlextra"]
