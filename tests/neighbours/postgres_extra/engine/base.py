from __future__ import annotations

from psqlextra.backend.base import DatabaseWrapper as ExtraWrapper

from django_pg_real_pool import make_release_backend

DatabaseWrapper = make_release_backend(ExtraWrapper)
