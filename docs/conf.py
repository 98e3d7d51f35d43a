"""Sphinx configuration: `sphinx-build -n -W docs docs/_build`."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

_pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")

project = "django-pg-real-pool"
author = "The django-pg-real-pool authors"
copyright = author
version = release = re.findall(r'^version = "(.+)"$', _pyproject, re.MULTILINE)[0]

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

# What signatures in reference/api.md name, and no page here describes.
nitpick_ignore = [
    ("py:class", name)
    for name in ("W", "type", "tuple", "...", "str", "int", "float", "None")
]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["docs.css"]


def insert_pitch(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the README's pitch into the index, so that it is written once."""
    if docname != "index":
        return
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    _, _, rest = readme.partition("<!-- begin-pitch -->")
    pitch, _, _ = rest.partition("<!-- end-pitch -->")
    # The README is one folder up, and its picture is chosen by the reader's system;
    # here it is chosen by the theme's switch.
    pitch = re.sub(
        r'<picture>.*?srcset="docs/([^"]+)".*?src="docs/([^"]+)".*?alt="([^"]+)".*?</picture>',
        r"```{image} \1\n:class: only-dark\n:alt: \3\n```\n\n"
        r"```{image} \2\n:class: only-light\n:alt: \3\n```",
        pitch,
        flags=re.DOTALL,
    )
    pitch = pitch.replace("](docs/", "](")
    source[0] = re.sub(r"<!-- The README's pitch.*?-->", lambda _: pitch.strip(), source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", insert_pitch)
