from __future__ import annotations

from django_prometheus.db.backends.postgresql.base import DatabaseWrapper as CountingWrapper

from django_pg_real_pool import make_release_backend

# It counts connections in the one, and gives them a class of cursors in the other.
DatabaseWrapper = make_release_backend(
    CountingWrapper, once_per_connection=["get_new_connection", "get_connection_params"]
)
