"""The scripts in the documentation's folder, which is no package."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from places import DOCS


def load(name: str) -> Any:
    """Import a script of the documentation's folder."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
