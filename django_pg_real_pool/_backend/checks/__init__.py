"""System checks of an alias, run by `manage.py check --database ALIAS` and `migrate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.core import checks

from ..._drivers.psycopg3 import blocks_greenlets
from ..._pool_settings import Problem, native_problems, queue_problems
from ..._pools.native import DjangosPool, NativePool
from ..._pools.queue import QueuePool
from ..._process import greenlets
from ..._settings import SETTING, misplaced, problems
from .server import findings

TAG = "django_pg_real_pool"


class ReleaseValidation:
    """Adds this library's checks to those of the base's validation class."""

    connection: Any

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        messages: list[checks.CheckMessage] = [
            *super().check(**kwargs),  # type: ignore[misc]
            *self._check_options(),
            *self._check_greenlets(),
        ]
        pool = self.connection._hooks.pool
        if type(pool) is NativePool:
            messages += self._check_native_pool()
        elif isinstance(pool, DjangosPool):
            messages += self._errors(native_problems)
        elif isinstance(pool, QueuePool):
            messages += self._errors(queue_problems)
        is_pooled = self.connection.settings_dict["OPTIONS"].get("pool", True)
        if is_pooled and not any(message.is_serious() for message in messages):
            messages += self._check_server()
        return messages

    def _error(self, number: int, message: str, hint: str) -> checks.Error:
        return checks.Error(
            f"Database {self.connection.alias!r}: {message}",
            hint=hint,
            id=f"{TAG}.E{number:03}",
        )

    def _warning(self, number: int, message: str, hint: str) -> checks.Warning:
        return checks.Warning(
            f"Database {self.connection.alias!r}: {message}",
            hint=hint,
            id=f"{TAG}.W{number:03}",
        )

    def _errors(
        self, find: Callable[[str, Any], Iterator[Problem]]
    ) -> list[checks.CheckMessage]:
        alias, settings = self.connection.alias, self.connection.settings_dict
        return [self._error(*problem) for problem in find(alias, settings)]

    def _check_server(self) -> list[checks.CheckMessage]:
        return [self._warning(*finding) for finding in findings(self.connection)]

    def _check_options(self) -> list[checks.CheckMessage]:
        alias, settings = self.connection.alias, self.connection.settings_dict
        return [
            *(
                self._error(4, problem, f"Correct DATABASES[{alias!r}][{SETTING!r}].")
                for problem in problems(settings.get(SETTING, {}))
            ),
            *(
                self._error(
                    9,
                    f"{setting} is in OPTIONS, whose keys go to the driver.",
                    f"Move it to DATABASES[{alias!r}][{setting!r}].",
                )
                for setting in misplaced(settings)
            ),
        ]

    def _check_greenlets(self) -> list[checks.CheckMessage]:
        if greenlets.was_patched_late():
            return [self._error(11, greenlets.LATE, greenlets.REMEDY)]
        if blocks_greenlets():
            return [
                self._warning(
                    8,
                    "psycopg would block all greenlets while it waits for the server.",
                    "With gevent, patch before psycopg is imported. With eventlet, set the "
                    "environment variable PSYCOPG_WAIT_FUNC to wait_select.",
                )
            ]
        return []

    def _check_native_pool(self) -> list[checks.CheckMessage]:
        alias, settings = self.connection.alias, self.connection.settings_dict
        pool = settings["OPTIONS"].get("pool")
        if pool is False:
            return []
        found: list[checks.CheckMessage] = []
        if not pool:
            found.append(
                self._error(
                    1,
                    "no connection pool is configured.",
                    f'Set DATABASES[{alias!r}]["OPTIONS"]["pool"] to True or to a dict '
                    'such as {"min_size": 2, "max_size": 10}; or to False to do '
                    "without a pool.",
                )
            )
        if settings.get("CONN_MAX_AGE", 0) != 0:
            found.append(
                self._error(
                    2,
                    f"CONN_MAX_AGE is {settings['CONN_MAX_AGE']!r}, but the pool decides "
                    "how long a connection lives.",
                    f'Set DATABASES[{alias!r}]["CONN_MAX_AGE"] to 0, and "max_lifetime" '
                    'in ["OPTIONS"]["pool"] if need be.',
                )
            )
        driver = self.connection.Database
        if driver.__name__ != "psycopg":
            found.append(
                self._error(
                    3,
                    f"the native pool needs psycopg 3, but the driver is "
                    f"{driver.__name__}.",
                    "Install it: pip install 'psycopg[pool]'.",
                )
            )
        else:
            found += self._errors(native_problems)
        return found
