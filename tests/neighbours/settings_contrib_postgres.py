"""Django settings with `django.contrib.postgres`."""

from __future__ import annotations

from settings import *

INSTALLED_APPS = ["django.contrib.postgres"]
