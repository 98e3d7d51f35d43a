"""Django's source distribution of the installed version: it carries `tests/`."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django


def fetch_tests(directory: Path) -> Path:
    """Return the `tests` directory that belongs to the installed Django.

    The sources are kept in `directory`, and fetched from PyPI if they are not there.
    """
    version = django.get_version()
    sources = directory / f"django-{version}"
    if not sources.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # Here and not there, so that what is there is always complete.
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            with tarfile.open(_download(version, Path(temporary))) as tar:
                tar.extractall(temporary, filter="data")
            (Path(temporary) / sources.name).rename(sources)
    return (sources / "tests").resolve(strict=True)


def _download(version: str, directory: Path) -> Path:
    # pip builds the metadata, also with --no-deps: in an environment that it makes for
    # the purpose, so setuptools comes from PyPI too.
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet"),
            *("--disable-pip-version-check", "--no-deps", "--no-binary", "django"),
            *("--dest", directory, f"django=={version}"),
        ],
        check=True,
    )
    (archive,) = directory.glob("*.tar.gz")
    return archive
