"""The options of one alias: `DATABASES[alias]["RELEASE_OPTIONS"]`."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from django.core.exceptions import ImproperlyConfigured

SETTING = "RELEASE_OPTIONS"
WARN_UNCLOSED_CURSORS = "DJANGO_PG_REAL_POOL_WARN_UNCLOSED_CURSORS"


class SessionPolicy(str, enum.Enum):
    """What to do about a statement that changes the session beyond its transaction."""

    #: Keep the connection until close(), and clean it before anybody else gets it.
    PIN = "pin"
    #: Refuse the statement.
    ERROR = "error"
    #: Do nothing, as stock.
    IGNORE = "ignore"


def _option(default: Any, valid: str, *, of: Any) -> Any:
    """Define an option: `of` makes the value from what was given, or raises ValueError."""
    return field(default=default, metadata={"valid": valid, "of": of})


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError
    return float(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - as the makers of the other options raise
    return value


@dataclass(frozen=True)
class ReleaseOptions:
    """What `RELEASE_OPTIONS` can say, as lower-case attributes with the defaults."""

    #: What happens when a statement changes the session.
    session_state: SessionPolicy = _option(  # noqa: RUF009
        SessionPolicy.PIN, "'pin', 'error' or 'ignore'", of=SessionPolicy
    )
    #: Seconds that a connection may have been idle and still be trusted; beyond, it is
    #: checked by a round trip before it is given out.  None: never.
    check_after_idle: float | None = _option(
        30.0, "a number of seconds, or None", of=_seconds
    )
    #: Seconds beyond which a lease is logged when it ends.  None: never.
    warn_held_after: float | None = _option(
        None, "a number of seconds, or None", of=_seconds
    )
    #: Remember where in the user's code each cursor, pin and transaction began, for
    #: error messages and warnings.  Costs a walk up the stack each time.
    track_origins: bool = _option(False, "True or False", of=_bool)

    @classmethod
    def read(cls, settings_dict: Mapping[str, Any], alias: str) -> ReleaseOptions:
        """Return the options of `alias`.

        Raises ImproperlyConfigured for the first key or value that is not valid.
        """
        for setting in misplaced(settings_dict):
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]: {setting} is in OPTIONS, whose keys go to the "
                f"driver. Move it to DATABASES[{alias!r}][{setting!r}]."
            )
        given = settings_dict.get(SETTING, {})
        if not given and isinstance(given, Mapping):
            return _DEFAULTS
        for problem in problems(given):
            raise ImproperlyConfigured(f"DATABASES[{alias!r}][{SETTING!r}]: {problem}")
        known = _known()
        return cls(**{key.lower(): known[key].metadata["of"](given[key]) for key in given})


_DEFAULTS = ReleaseOptions()


def _known() -> dict[str, Field[Any]]:
    return {each.name.upper(): each for each in fields(ReleaseOptions)}


def misplaced(settings_dict: Mapping[str, Any]) -> Iterator[str]:
    """Yield each setting that is in `OPTIONS`, and belongs beside it."""
    options = settings_dict.get("OPTIONS") or ()
    for setting in (SETTING, "POOL_OPTIONS"):
        if setting in options:
            yield setting


def problems(given: Any) -> Iterator[str]:
    """Yield a sentence for everything in `given` that is not valid."""
    if not isinstance(given, Mapping):
        yield f"expected a dict of options, got {given!r}."
        return
    known = _known()
    for key, value in given.items():
        if key not in known:
            yield f"unknown option {key!r}; valid options are: {', '.join(sorted(known))}."
            continue
        metadata = known[key].metadata
        try:
            metadata["of"](value)
        except ValueError:
            yield f"{key} must be {metadata['valid']}, got {value!r}."


def warns_of_unclosed_cursors() -> bool:
    """Return whether unclosed cursors are logged, with where they were opened."""
    return os.environ.get(WARN_UNCLOSED_CURSORS, "") not in ("", "0")
