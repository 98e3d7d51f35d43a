"""What is wrong in an alias's settings of its pool.

The system checks report each problem; making a pool refuses the first.  So both have the
same words.  Nothing here needs a pool, a wrapper or a driver.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import django
from django.core.exceptions import ImproperlyConfigured

#: What Django passes to the pool itself, so that settings can't.  It took `check` from them
#: from 6.1 on.
_SET_BY_DJANGO = {"kwargs", "open", "configure"} | (
    {"check"} if django.VERSION < (6, 1) else set()
)

#: What django-db-connection-pool counts by; all other numbers are seconds.
_COUNTS = ("POOL_SIZE", "MAX_OVERFLOW")

#: The least that makes sense, where that is not 0.
_LEAST = {"num_workers": 1}


class Problem(NamedTuple):
    """What is wrong with a setting, as check E005 has the number 5; and what to do."""

    number: int
    message: str
    remedy: str


def refuse(alias: str, problems: Iterable[Problem]) -> None:
    """Raise ImproperlyConfigured for the first problem, if there is one."""
    for problem in problems:
        raise ImproperlyConfigured(
            f"Database {alias!r}: {problem.message} {problem.remedy}"
        )


def native_problems(alias: str, settings_dict: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what psycopg_pool.ConnectionPool would refuse in `OPTIONS["pool"]`.

    Nothing if there is no pool: whether there has to be one is another question.
    """
    options = settings_dict["OPTIONS"].get("pool")
    place = f'DATABASES[{alias!r}]["OPTIONS"]["pool"]'
    if not options:
        return
    if options is not True and not isinstance(options, Mapping):
        yield Problem(
            5,
            f'OPTIONS["pool"] must be True, False or a dict, got {options!r}.',
            f'Set {place} to True, or to a dict such as {{"min_size": 2, "max_size": 10}}.',
        )
        return
    try:
        from psycopg_pool import ConnectionPool
    except ImportError:
        yield Problem(
            8,
            "the native pool needs psycopg_pool, which is not installed.",
            "Install it: pip install 'psycopg[pool]'.",
        )
        return
    if options is True:
        return
    parameters = inspect.signature(ConnectionPool.__init__).parameters
    defaults = {name: each.default for name, each in parameters.items() if name != "self"}
    yield from _unknown_keys(options, defaults, place)
    wrong = list(_wrong_values(options, defaults, place))
    yield from wrong or _wrong_sizes(options, defaults["min_size"], place)


def queue_problems(alias: str, settings_dict: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what django-db-connection-pool would ignore in `POOL_OPTIONS`, or fail of."""
    from dj_db_conn_pool.core import pool_container

    place = f'DATABASES[{alias!r}]["POOL_OPTIONS"]'
    options = settings_dict.get("POOL_OPTIONS", {})
    if not isinstance(options, Mapping):
        yield Problem(
            10,
            f"POOL_OPTIONS must be a dict, got {options!r}.",
            f'Set {place} to a dict such as {{"POOL_SIZE": 10, "MAX_OVERFLOW": 0}}.',
        )
        return
    defaults = {
        name.upper(): value for name, value in pool_container.pool_default_params.items()
    }
    valid = sorted(defaults)
    for key, value in options.items():
        if key in defaults:
            is_whole = key in _COUNTS
            if type(defaults[key]) is int and not _is_number(value, is_whole):
                number = "whole number" if is_whole else "number"
                yield Problem(
                    10,
                    f"{key} in POOL_OPTIONS must be a {number}, got {value!r}.",
                    f'Correct {place}["{key}"].',
                )
            continue
        nearest = get_close_matches(str(key).upper(), valid, n=1)
        yield Problem(
            10,
            f"unknown option {key!r} in POOL_OPTIONS, which django-db-connection-pool "
            "ignores.",
            f"Write {nearest[0]!r} in {place}."
            if nearest
            else f"Remove it from {place}. Valid options are: {', '.join(valid)}.",
        )


def _is_number(value: Any, is_whole: bool) -> bool:
    kinds: tuple[type, ...] = (int,) if is_whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _unknown_keys(
    options: Mapping[Any, Any], defaults: Mapping[str, Any], place: str
) -> Iterator[Problem]:
    valid = sorted(defaults.keys() - _SET_BY_DJANGO)
    for key in options:
        if key in valid:
            continue
        if key in defaults:
            yield Problem(
                6,
                f'option {key!r} in OPTIONS["pool"] is one that Django sets itself.',
                f"Remove it from {place}.",
            )
            continue
        nearest = get_close_matches(str(key).lower(), valid, n=1)
        yield Problem(
            6,
            f'unknown option {key!r} in OPTIONS["pool"].',
            f"Write {nearest[0]!r} in {place}."
            if nearest
            else f"Remove it from {place}. Valid options are: {', '.join(valid)}.",
        )


def _wrong_values(
    options: Mapping[Any, Any], defaults: Mapping[str, Any], place: str
) -> Iterator[Problem]:
    for key, value in options.items():
        default = defaults.get(key)
        if isinstance(default, type) and default is not inspect.Parameter.empty:
            if not isinstance(value, type):
                yield Problem(
                    7,
                    f'{key} in OPTIONS["pool"] must be a class, got {value!r}.',
                    f'Correct {place}["{key}"].',
                )
            continue
        is_whole = type(default) is int or (key == "max_size" and value is not None)
        if not is_whole and type(default) is not float:
            continue
        least = _LEAST.get(key, 0)
        if not _is_number(value, is_whole) or not value >= least:
            number = "whole number" if is_whole else "number"
            yield Problem(
                7,
                f'{key} in OPTIONS["pool"] must be a {number}, {least} or more, got '
                f"{value!r}.",
                f'Correct {place}["{key}"].',
            )


def _wrong_sizes(options: Mapping[Any, Any], default: int, place: str) -> Iterator[Problem]:
    least, most = options.get("min_size", default), options.get("max_size")
    if least == 0 and not most:
        yield Problem(
            7,
            f'min_size is 0 in OPTIONS["pool"], and max_size is '
            f"{'not set' if most is None else most}, so there is room for no connection.",
            f'Set {place}["max_size"] to 1 or more.',
        )
    elif most is not None and most < least:
        if "min_size" in options:
            yield Problem(
                7,
                f'min_size is {least} in OPTIONS["pool"], but max_size is {most}.',
                f'Lower {place}["min_size"] or raise ["max_size"].',
            )
        else:
            yield Problem(
                7,
                f'max_size is {most} in OPTIONS["pool"], but min_size is not set, and '
                f"its default is {least}.",
                f'Set {place}["min_size"] to {most} or less.',
            )
