"""A package index of one: a folder that has another project of this one's name.

On the public index the name belongs, up to 1.1.0, to somebody else.  This stands for that
version; nothing of it is known or needed here but its number.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

NAME = "django-pg-real-pool"
VERSION = "1.1.0"


def make_dummy(folder: Path) -> Path:
    """Write a wheel with nothing in it; return its path."""
    stem = f"{NAME.replace('-', '_')}-{VERSION}"
    info = f"{stem}.dist-info"
    wheel = folder / f"{stem}-py3-none-any.whl"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return wheel
