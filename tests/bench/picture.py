"""Draws what was measured, once for light pages and once for dark ones."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from demo.picture import DPI, WIDTH, style
from demo.themes import THEMES, Theme
from matplotlib import rc_context
from matplotlib.figure import Figure

from bench.report import grouped, ideal

SHOWN = ["cursor without SQL", "empty atomic()", "get()", "request: three get(), close()"]


def draw(found: Any, directory: Path) -> list[Path]:
    """Write the pictures in each theme to `directory`; return where they are."""
    files = []
    for theme in THEMES:
        with rc_context(style(theme)):
            for name, figure in (
                ("cost", _cost(found["operations"], theme)),
                ("throughput", _throughput(found["throughput"], theme)),
            ):
                file = directory / f"bench-{name}-{theme.name}.png"
                figure.savefig(file, dpi=DPI)
                files.append(file)
    return files


def _cost(taken: Any, theme: Theme) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4))
    for axes, name in zip(figure.subplots(2, 2).flat, SHOWN, strict=True):
        for at, (alias, colour) in enumerate(
            [("ours", theme.ours), ("stock", theme.stock)]
        ):
            low, middle, high = statistics.quantiles(taken[name][alias], n=4)
            axes.barh(at, middle, color=colour, height=0.6)
            axes.plot([low, high], [at, at], color=theme.ink, linewidth=1)
            axes.text(
                middle / 2,
                at,
                f"{middle:.0f}",
                ha="center",
                va="center_baseline",
                color=theme.background,
                fontweight="bold",
            )
        axes.set_yticks([0, 1], ["ours", "stock"])
        axes.set_title(name, loc="left", fontsize=10)
        axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel("microseconds")
    figure.tight_layout()
    return figure


def _throughput(results: list[Any], theme: Theme) -> Figure:
    works = grouped(results, "other_work")
    figure = Figure(figsize=(WIDTH, 3.6))
    for axes, ((work,), engines) in zip(
        figure.subplots(1, len(works), squeeze=False)[0], works.items(), strict=True
    ):
        best = ideal(engines)
        axes.axhline(
            best,
            color=theme.soft,
            linewidth=1,
            linestyle="--",
            label="ideal: one for each thread",
        )
        for engine, colour in (("stock", theme.stock), ("ours", theme.ours)):
            runs = engines[engine]
            axes.plot(
                [run["load"]["connections"] for run in runs],
                [run["requests_per_second"] for run in runs],
                color=colour,
                marker="o",
                label=engine,
            )
        for engine, runs in engines.items():
            if engine.startswith("PgBouncer"):
                (run,) = runs
                axes.plot(
                    *([4], [run["requests_per_second"]], "D"),
                    color=theme.ink,
                    label="stock, behind PgBouncer",
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks([run["load"]["connections"] for run in engines["ours"]][::2])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:.0f}")
        most = max(run["requests_per_second"] for runs in engines.values() for run in runs)
        axes.set_ylim(0, most * 1.15)
        axes.set_title(f"other work: {work:g} ms", loc="left", fontsize=10)
    figure.axes[1 % len(works)].set_xlabel("connections in the pool")
    figure.axes[0].set_ylabel("requests per second")
    figure.tight_layout(rect=(0, 0, 1, 0.84), w_pad=0.5)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        frameon=False,
        loc="upper left",
        ncols=2,
    )
    return figure
