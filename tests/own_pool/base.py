from __future__ import annotations

from django_pg_real_pool import make_release_backend
from own_pool.stock.base import DatabaseWrapper as PooledWrapper

DatabaseWrapper = make_release_backend(PooledWrapper)
