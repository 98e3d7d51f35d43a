"""What the chaos session goes by: a verdict that is blind is worse than none."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chaos.load import Load, TimeLimit


@pytest.mark.parametrize("raised", [AttributeError, OSError, KeyboardInterrupt])
def test_whatever_a_request_raises_is_written_down(raised: type[BaseException]) -> None:
    class Failing(Load):
        def read(self, choose: random.Random) -> None:
            raise raised("for no good reason")

        write = move = hold = stream = read

    load = Failing(thing=None)
    load.make_request(random.Random(1))
    (request,) = load.requests
    assert request.error == f"{raised.__name__}: ['for no good reason']"


def test_a_time_limit_is_seen_behind_what_came_of_it() -> None:
    class Limited(Load):
        def read(self, choose: random.Random) -> None:
            try:
                raise TimeLimit
            finally:
                raise OSError("autocommit can't be changed now")

        write = move = hold = stream = read

    load = Limited(thing=None)
    load.make_request(random.Random(1))
    (request,) = load.requests
    assert str(request.error).startswith("TimeLimit:")


def test_two_threads_that_have_one_connection_are_seen() -> None:
    load = Load(thing=None)
    first: Any = (7, 1.0, 3.0, 100)
    load.spans = [first, (7, 3.5, 4.0, 200), (8, 2.0, 3.0, 200)]
    assert load.doubled() == 0
    load.spans.append((7, 2.0, 3.2, 300))
    assert load.doubled() == 1
