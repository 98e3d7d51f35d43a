"""A set and a dict that keep nothing alive, and run no Python code when something goes.

An exception that a signal handler or a time limit throws while the callback of a weak
reference runs is printed and gone.  The callbacks of WeakSet and WeakKeyDictionary are
Python code; these are methods of built-ins, where Python looks for neither.  Nor is a lock
needed: each method is one call of a built-in, which without the GIL has a lock of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar
from weakref import ref

T = TypeVar("T")
V = TypeVar("V")


class WeakBag(Generic[T]):
    """What is put in is there until it is collected."""

    def __init__(self) -> None:
        self._refs: set[ref[Any]] = set()

    def add(self, thing: T) -> None:
        self._refs.add(ref(thing, self._refs.discard))

    def __iter__(self) -> Iterator[T]:
        found = [each() for each in list(self._refs)]
        return (each for each in found if each is not None)

    def __bool__(self) -> bool:
        return bool(self._refs)

    def discard(self, thing: T) -> None:
        self._refs.discard(ref(thing))

    def clear(self) -> None:
        self._refs.clear()


class WeakMap(Generic[T, V]):
    """What is known of things, until they are collected."""

    def __init__(self) -> None:
        self._values: dict[ref[Any], V] = {}

    def get(self, thing: T) -> V | None:
        return self._values.get(ref(thing))

    def __setitem__(self, thing: T, value: V) -> None:
        self._values[ref(thing, self._values.__delitem__)] = value

    def discard(self, thing: T) -> None:
        self._values.pop(ref(thing), None)

    def __iter__(self) -> Iterator[T]:
        found = [each() for each in list(self._values)]
        return (each for each in found if each is not None)
