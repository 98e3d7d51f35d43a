from __future__ import annotations

from dj_db_conn_pool.backends.postgis.base import DatabaseWrapper as PooledWrapper

from django_pg_real_pool import make_release_backend

DatabaseWrapper = make_release_backend(PooledWrapper)
