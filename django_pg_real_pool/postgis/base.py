"""Django's PostGIS wrapper, made to release early."""

from collections import Counter
from typing import Any, ClassVar

from django.contrib.gis.db.backends.postgis import base

from .._backend.factory import make_release_backend
from .._process.weak import WeakMap


class PooledWrapper(base.DatabaseWrapper):
    """Registers the adapters of a connection once, not at the start of each request.

    They are the connection's, and the pool keeps it.  They are registered anew where
    Django has looked for the types of PostGIS again, which may be installed when there is
    a pool already.
    """

    #: How often the types of an alias were looked for.
    _searches: ClassVar[Counter[str]] = Counter()
    #: After which of these searches a connection got its adapters.
    _registered: ClassVar[WeakMap[Any, int]] = WeakMap()

    def register_geometry_adapters(
        self, pg_connection: Any, clear_caches: bool = False
    ) -> None:
        if clear_caches:
            self._searches[self.alias] += 1
        search = self._searches[self.alias]
        if self._registered.get(pg_connection) != search:
            super().register_geometry_adapters(pg_connection, clear_caches)
            self._registered[pg_connection] = search


DatabaseWrapper = make_release_backend(PooledWrapper)
