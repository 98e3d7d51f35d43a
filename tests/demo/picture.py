"""Draws two runs side by side in time, once for light pages and once for dark ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from demo.run import Run
from demo.themes import THEMES, Theme

WINDOWS = 24


#: Inches.  The text is 10 points and more, so that it is readable at half a page's width.
WIDTH = 5.6
DPI = 286


def draw(stock: Run, ours: Run, directory: Path) -> list[Path]:
    """Write the picture in each theme to `directory`; return where they are."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for theme in THEMES:
        file = directory / f"demo-{theme.name}.png"
        with rc_context(style(theme)):
            _figure(stock, ours, theme).savefig(file, dpi=DPI)
        files.append(file)
    return files


def style(theme: Theme) -> Any:
    return {
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "font.size": 10,
    }


def _figure(stock: Run, ours: Run, theme: Theme) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.6))
    left, right = figure.subplots(1, 2)
    figure.text(
        0.015,
        0.935,
        f"{stock.threads} threads behind {stock.connections} connections: "
        "only ENGINE differs",
        fontsize=12,
        fontweight="bold",
    )
    figure.text(
        0.015,
        0.86,
        f"a request: three queries, {stock.other_work * 1000:.0f} ms of other work between",
        color=theme.soft,
    )
    _draw_connections(left, stock, "stock", theme.stock, theme)
    _draw_connections(left, ours, "ours", theme.ours, theme)
    _draw_requests(right, stock, "stock", theme.stock, theme, label_at=0.98)
    _draw_requests(right, ours, "ours", theme.ours, theme, label_at=0.6)

    left.set_title("connections in use", loc="left", fontsize=10.5)
    left.set_ylim(0, stock.connections * 1.25)
    left.set_yticks(range(stock.connections + 1))
    right.set_title("requests done", loc="left", fontsize=10.5)
    right.set_ylim(0)
    for axes in (left, right):
        axes.set_xlim(0, stock.seconds)
        axes.set_xlabel("seconds")
    figure.tight_layout(rect=(0, 0, 1, 0.86), w_pad=1)
    return figure


def _draw_connections(axes: Any, run: Run, name: str, colour: str, theme: Theme) -> None:
    in_use = run.in_use(WINDOWS)
    width = run.seconds / WINDOWS
    edges = [width * window for window in range(WINDOWS + 1)]
    axes.stairs(in_use, edges, color=colour, linewidth=1.5)
    axes.stairs(in_use, edges, color=colour, alpha=0.12, fill=True)
    text = f"{name}: {run.in_use()[0]:.2f} on average"
    _label(axes, text, (width / 2, max(in_use)), "left", colour, theme)


def _draw_requests(
    axes: Any, run: Run, name: str, colour: str, theme: Theme, label_at: float
) -> None:
    ends = run.ends()
    axes.plot([0, *ends], range(len(ends) + 1), color=colour, linewidth=1.5)
    text = f"{name}: {run.requests_per_second():.0f}\nper second"
    at = int(len(ends) * label_at)
    _label(axes, text, (ends[at], at), "right", colour, theme)


def _label(
    axes: Any,
    text: str,
    at: tuple[float, float],
    side: str,
    colour: str,
    theme: Theme,
) -> None:
    axes.annotate(
        text,
        at,
        xytext=(0, 4),
        textcoords="offset points",
        ha=side,
        color=colour,
        fontweight="bold",
        path_effects=[withStroke(linewidth=3, foreground=theme.background)],
    )
