"""What the wild programs have found, each as the shortest program that shows it."""

from __future__ import annotations

from typing import Any

import pytest
from receivers import receiving
from sessions import ask, in_another_request, pool_for_one


def test_what_receivers_set_before_one_raised_is_not_the_next_requests(alias: str) -> None:
    """D4, R9: the connection goes back as if it had heard nothing, but it has."""

    def set_and_raise(db: Any) -> None:
        with db.cursor() as cursor:
            cursor.execute("SELECT set_config('app.user', 'ann', false)")
        raise LookupError

    def request_of_ann() -> None:
        with pytest.raises(LookupError):
            ask(one, "SELECT 1")

    with pool_for_one(alias) as one:
        with receiving(one, set_and_raise):
            in_another_request(request_of_ann)
        seen = in_another_request(
            lambda: ask(one, "SELECT current_setting('app.user', true)")
        )
        assert not seen
