"""R3: what watches things go costs nobody an exception."""

from __future__ import annotations

import sys
from typing import Any

from django_pg_real_pool._drivers import Driver
from django_pg_real_pool._process.weak import WeakBag, WeakMap


class Thing:
    """Something that can be referred to weakly."""


def test_it_has_what_lives() -> None:
    bag, one, other = WeakBag[Thing](), Thing(), Thing()
    bag.add(one)
    bag.add(other)
    bag.add(one)
    assert len(list(bag)) == 2
    del one
    assert list(bag) == [other]
    bag.clear()
    assert list(bag) == []


def test_it_has_what_is_known_of_what_lives() -> None:
    known, one, other = WeakMap[Thing, int](), Thing(), Thing()
    assert known.get(one) is None
    known[one] = 1
    known[one] = 2
    known[other] = 3
    assert (known.get(one), known.get(other)) == (2, 3)
    known.discard(other)
    known.discard(other)
    assert list(known) == [one]
    del one
    assert list(known) == []
    assert known.get(other) is None


def test_what_goes_runs_no_python_code() -> None:
    """Where there is none, no signal handler or time limit can throw into it.

    Nor where a driver remembers connections of which it knows nothing else.
    """
    bag, things, called = WeakBag[Thing](), [Thing() for _ in range(3)], []
    driver = Driver()
    for each in things:
        bag.add(each)
        driver.mark_set_up(each, (("SELECT 1", None),))
        driver.note_sent_by_base(each, ())
    del each

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        things.clear()
    finally:
        sys.setprofile(None)
    assert list(bag) == []
    assert called == []
