"""What the tests of the project tell whoever runs them."""

from __future__ import annotations

import os
from pathlib import Path

from django.db import connections


def note(alias: str = "default") -> None:
    """Write down the test, its worker, and its database and server process."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_database(), pg_backend_pid()")
        database, pid = cursor.fetchone()
    worker = os.environ["PYTEST_XDIST_WORKER"]
    test = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0]
    with Path(os.environ["SHOP_NOTES"]).open("a") as notes:
        notes.write(f"{test} {worker} {database} {pid}\n")
