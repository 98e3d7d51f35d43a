from __future__ import annotations

from django_tenants.postgresql_backend.base import DatabaseWrapper as TenantsWrapper

from django_pg_real_pool import make_release_backend

DatabaseWrapper = make_release_backend(TenantsWrapper)
