"""django-db-connection-pool's PostgreSQL wrapper, made to release early."""

from django.core.exceptions import ImproperlyConfigured

from .._backend.factory import make_release_backend

try:
    from dj_db_conn_pool.backends.postgresql.base import DatabaseWrapper as PooledWrapper
except ImportError as error:
    raise ImproperlyConfigured(
        'ENGINE = "django_pg_real_pool.dj_db_conn_pool" needs django-db-connection-pool '
        f"({error}). Install it: pip install django-db-connection-pool"
    ) from error

DatabaseWrapper = make_release_backend(PooledWrapper)
