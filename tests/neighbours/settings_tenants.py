"""Django settings with django-tenants, as its documentation has them."""

from __future__ import annotations

from settings import *

SHARED_APPS = [
    "django_tenants",
    "neighbours.tenants.customers",
    "django.contrib.contenttypes",
]
TENANT_APPS = ["django.contrib.contenttypes", "neighbours.tenants.notes"]
INSTALLED_APPS = list(dict.fromkeys([*SHARED_APPS, *TENANT_APPS]))
TENANT_MODEL = "customers.Client"
TENANT_DOMAIN_MODEL = "customers.Domain"
TENANT_DB_ALIAS = "native"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
