"""`ENGINE = "django_pg_real_pool"`: Django's own pool of psycopg connections."""

from django.db.backends.postgresql.base import DatabaseWrapper as PooledWrapper

from ._backend.factory import make_release_backend

DatabaseWrapper = make_release_backend(PooledWrapper)
