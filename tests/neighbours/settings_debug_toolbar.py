"""The tests' settings, with django-debug-toolbar installed as its first page says."""

from debug_toolbar.settings import PANELS_DEFAULTS
from settings import *

INSTALLED_APPS = ["django.contrib.staticfiles", "debug_toolbar"]
MIDDLEWARE = ["debug_toolbar.middleware.DebugToolbarMiddleware"]
INTERNAL_IPS = ["127.0.0.1"]
STATIC_URL = "static/"
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
]
ROOT_URLCONF = "neighbours.panel_urls"
DEBUG_TOOLBAR_PANELS = [
    *PANELS_DEFAULTS,
    "django_pg_real_pool.contrib.debug_toolbar.LeasesPanel",
]
DEBUG_TOOLBAR_CONFIG = {
    # Which it asks itself, and then is off.
    "IS_RUNNING_TESTS": False,
    # Has migrations if it is chosen from the beginning.  Most tests choose the default.
    "TOOLBAR_STORE_CLASS": "debug_toolbar.store.DatabaseStore",
}
