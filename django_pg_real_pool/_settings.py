"""The options of one alias: `DATABASES[alias]["RELEASE_OPTIONS"]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from django.core.exceptions import ImproperlyConfigured

SETTING = "RELEASE_OPTIONS"
WARN_UNCLOSED_CURSORS = "DJANGO_PG_REAL_POOL_WARN_UNCLOSED_CURSORS"


@dataclass(frozen=True)
class ReleaseOptions:
    """What `RELEASE_OPTIONS` can say, as lower-case attributes with the defaults."""

    #: Remember where in the user's code each cursor, pin and transaction began, for
    #: error messages and warnings.  Costs a walk up the stack each time.
    track_origins: bool = False

    @classmethod
    def read(cls, settings_dict: Mapping[str, Any], alias: str) -> ReleaseOptions:
        """Return the options of `alias`.

        Raises ImproperlyConfigured for the first key or value that can't be meant.
        """
        given = settings_dict.get(SETTING, {})
        problem = next(problems(given), None)
        if problem is not None:
            raise ImproperlyConfigured(f"DATABASES[{alias!r}][{SETTING!r}]: {problem}")
        return cls(**{key.lower(): value for key, value in given.items()})


def problems(given: Any) -> Any:
    """Yield a sentence for everything in `given` that can't be meant."""
    types = {field.name.upper(): field.type for field in fields(ReleaseOptions)}
    if not isinstance(given, Mapping):
        yield f"expected a dict of options, got {given!r}."
        return
    for key, value in given.items():
        if key not in types:
            yield f"unknown option {key!r}; valid options are: {', '.join(sorted(types))}."
        elif types[key] == "bool" and not isinstance(value, bool):
            yield f"{key} must be True or False, got {value!r}."


def warns_of_unclosed_cursors() -> bool:
    """Return whether unclosed cursors are logged, with where they were opened."""
    return os.environ.get(WARN_UNCLOSED_CURSORS, "") not in ("", "0")
