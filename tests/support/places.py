"""Where the checkout is, and what a process of its own needs to find the tests' modules."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
CHECKOUT = TESTS.parent
DOCS = CHECKOUT / "docs"

#: What `pythonpath` is for pytest: for PYTHONPATH.
PYTHON_PATH = os.pathsep.join([str(SUPPORT), str(TESTS)])
