from __future__ import annotations

from django_prometheus.db.backends.postgresql.base import DatabaseWrapper as CountingWrapper

from django_pg_real_pool import make_release_backend

DatabaseWrapper = make_release_backend(CountingWrapper)
