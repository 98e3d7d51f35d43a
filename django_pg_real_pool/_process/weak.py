"""A set that keeps nothing alive, and that runs no Python code when something goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar
from weakref import ref

T = TypeVar("T")


class WeakBag(Generic[T]):
    """What is put in is there until it is collected.

    An exception that a signal handler or a time limit throws while the callback of a weak
    reference runs is printed and gone.  WeakSet's callback is Python code; this one is a
    method of a built-in, where Python looks for neither.  Nor is a lock needed: to add,
    to discard and to list are each one call of a built-in.
    """

    def __init__(self) -> None:
        self._refs: set[ref[Any]] = set()

    def add(self, thing: T) -> None:
        self._refs.add(ref(thing, self._refs.discard))

    def __iter__(self) -> Iterator[T]:
        found = [each() for each in list(self._refs)]
        return (each for each in found if each is not None)

    def clear(self) -> None:
        self._refs.clear()
