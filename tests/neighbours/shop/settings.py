"""Its settings.  `SHOP_ENGINE` is the engine of both of its databases."""

import os

from settings import DATABASES as ENGINES

ENGINE = ENGINES[os.environ["SHOP_ENGINE"]]
REAL = os.environ["SHOP_DATABASE"]

SECRET_KEY = "shop"
USE_TZ = True
INSTALLED_APPS = ["neighbours.shop.apps.ShopConfig"]
STATIC_URL = "static/"
ROOT_URLCONF = "neighbours.shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {**ENGINE, "NAME": REAL},
    "archive": {**ENGINE, "NAME": REAL, "TEST": {"NAME": f"test_{REAL}_archive"}},
}
