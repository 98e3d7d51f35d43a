"""Django settings with django-prometheus, as its documentation has them."""

from __future__ import annotations

from settings import *
from settings import DATABASES, NATIVE, database

INSTALLED_APPS = ["django_prometheus"]

DATABASES["plain_native"] = database("neighbours.prometheus.plain", **NATIVE)
