"""The colours of the pictures: for light pages, and for dark ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    name: str
    #: Also what is written on a bar.
    background: str
    ink: str
    soft: str
    faint: str
    stock: str
    ours: str


THEMES = [
    Theme("light", "#ffffff", "#1f2328", "#59636e", "#d9dee3", "#c2410c", "#0969da"),
    Theme("dark", "#0d1117", "#e6edf3", "#9198a1", "#30363d", "#f0883e", "#58a6ff"),
]
