"""Django settings with django-pgtrigger, as its documentation has them."""

from __future__ import annotations

from settings import *

INSTALLED_APPS = ["pgtrigger"]
