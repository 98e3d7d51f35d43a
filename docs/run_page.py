"""Runs the Python code of a documentation page, as its reader would: `run_page.py PAGE`.

The server is the one that `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD` and `PGDATABASE`
name; the database has a table `item (id serial, name text unique)`.

- A `python` block whose caption is a path is a file of the reader's project.  All blocks
  captioned `settings.py` are one file; only the server's address is replaced.
- The other `python` blocks are run in the page's order, in one namespace, and `pycon`
  blocks are doctests in that namespace.
- What the page does not show is the project around it: a model `shop.models.Item`, and
  settings for a page that has none.

The tutorial is another matter: it begins without a project.  `nox -s tutorial` runs it.
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parent

BLOCK = re.compile(
    r"^(?P<fence>`{3,})(?:\{code-block\} *)?(?P<language>\{[\w:-]+\}|[\w-]*)[^\n]*\n"
    r"(?:(?P<options>(?::[\w-]+:[^\n]*\n)+)\n?)?"
    r"(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)

DEFAULT_SETTINGS = """\
DATABASES = {
    "default": {
        "ENGINE": "django_pg_real_pool",
        "OPTIONS": {"pool": {"min_size": 2, "max_size": 10}},
    },
}
"""

AROUND_SETTINGS = """
import os

SECRET_KEY = "documentation"
USE_TZ = True
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

for _database in DATABASES.values():
    for _key in ("USER", "PASSWORD", "HOST", "PORT"):
        _database[_key] = os.environ.get("PG" + _key, "")
    _database["NAME"] = os.environ["PGDATABASE"]
"""

MODELS = """\
from django.db import models


class Item(models.Model):
    name = models.TextField(unique=True)

    class Meta:
        db_table = "item"
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    caption: str
    code: str
    line: int


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        caption = re.search(r"^:caption: *(.+)$", match["options"] or "", re.MULTILINE)
        yield Block(
            language=match["language"],
            caption=caption[1].strip() if caption else "",
            code=match["code"],
            line=text.count("\n", 0, match.start("code")) + 1,
        )


def make_project(blocks: list[Block], directory: Path) -> list[str]:
    """Write the files of the page's project; return the names of its modules."""
    files = {"shop/models.py": MODELS}
    settings = "".join(block.code for block in blocks if block.caption == "settings.py")
    if "DATABASES = " not in settings:
        settings = DEFAULT_SETTINGS + settings
    files["settings.py"] = settings + AROUND_SETTINGS
    shown = [block for block in blocks if block.language == "python" and block.caption]
    files.update(
        {block.caption: block.code for block in shown if block.caption != "settings.py"}
    )
    for name, code in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in path.relative_to(directory).parents[:-1]:
            (directory / package / "__init__.py").touch()
        path.write_text(code, encoding="utf-8")
    return [
        block.caption.removesuffix(".py").replace("/", ".")
        for block in shown
        if block.caption != "settings.py"
    ]


def run(page: Path) -> int:
    """Run a page; return how many of its blocks failed."""
    blocks = list(blocks_of(page))
    failed = 0
    with tempfile.TemporaryDirectory() as directory:
        modules = make_project(blocks, Path(directory))
        sys.path.insert(0, directory)
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        import django

        django.setup()
        for module in modules:
            importlib.import_module(module)

        from django.db import connections

        for wrapper in connections.all():
            problems = wrapper.validation.check()
            if problems:
                print(f"{page.name}: the settings have problems: {problems}")
                failed += 1

        namespace: dict[str, Any] = {"__name__": "__main__"}
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        for block in blocks:
            if block.language == "pycon":
                test = doctest.DocTestParser().get_doctest(
                    block.code, {}, page.name, str(page), block.line - 1
                )
                test.globs = namespace  # not a copy: later blocks go on with it
                failed += runner.run(test, clear_globs=False).failed
            elif block.language == "python" and not block.caption:
                code = "\n" * (block.line - 1) + block.code
                exec(compile(code, str(page), "exec"), namespace)  # noqa: S102
        for wrapper in connections.all():
            wrapper.close()
            getattr(wrapper, "close_pool", bool)()
    return failed


if __name__ == "__main__":
    sys.exit(bool(run(DOCS / sys.argv[1])))
