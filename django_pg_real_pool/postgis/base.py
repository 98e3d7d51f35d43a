"""Django's PostGIS wrapper, made to release early."""

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from django.contrib.gis.db.backends.postgis import base

from .._factory import make_release_backend


class PooledWrapper(base.DatabaseWrapper):
    """Registers the adapters of a connection once, not at the start of each request.

    They are the connection's, and the pool keeps it.  Registered anew is only what was
    found to be another type since: PostGIS may be installed when there is a pool already.
    """

    #: The types that were found for each connection, when it got its adapters.
    _registered: ClassVar[WeakKeyDictionary[Any, list[Any]]] = WeakKeyDictionary()

    def register_geometry_adapters(
        self, pg_connection: Any, clear_caches: bool = False
    ) -> None:
        if clear_caches or self._registered.get(pg_connection) != self._found():
            super().register_geometry_adapters(pg_connection, clear_caches)
            self._registered[pg_connection] = self._found()

    def _found(self) -> list[Any]:
        infos: Any = self._type_infos  # type: ignore[attr-defined]
        return [of_alias.get(self.alias) for of_alias in infos.values()]


DatabaseWrapper = make_release_backend(PooledWrapper)
