"""Says what was measured, in tables."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

PAIRS = [
    ("stock", "ours"),
    ("stock, checks", "ours, checks"),
    ("dj stock", "dj ours"),
    ("ours", "ours, observed"),
]
#: What is said of a pair, after the operation.
LABELS = {"stock, checks": ", checks", "dj stock": ", dj", "ours": ", observed beside ours"}


def operations(taken: dict[str, dict[str, list[float]]]) -> str:
    """Return medians with their quartiles, in microseconds, and ours beside stock."""
    lines = [
        "Cost of an operation: median in microseconds, and the middle half of all rounds.",
        "",
        f"{'':<32}{'stock':>26}{'ours':>26}{'ours : stock':>14}{'more, us':>10}",
    ]
    for name, aliases in taken.items():
        if name in ("floor", "session check"):
            continue
        for stock, ours in PAIRS:
            label = name + LABELS.get(stock, "")
            left, right = (statistics.median(aliases[each]) for each in (stock, ours))
            # Round by round, for what slows a round down slows down both.
            rounds = zip(aliases[ours], aliases[stock], strict=True)
            ratio = statistics.median(a / b for a, b in rounds)
            lines.append(
                f"{label:<32}{spread(aliases[stock]):>26}{spread(aliases[ours]):>26}"
                f"{ratio:>14.3f}{right - left:>10.1f}"
            )
    for pool, rounds_of_pool in taken["floor"].items():
        lines.append(f"{'floor of the pool, ' + pool:<32}{spread(rounds_of_pool):>26}")
    for what, rounds_of_check in taken["session check"].items():
        label = f"session check, {what}"
        lines.append(f"{label:<44}{statistics.median(rounds_of_check):.3f} us")
    lines += ["", *against_floor(taken)]
    return "\n".join([*lines, ""])


def against_floor(taken: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """Yield what a checkout and a checkin add, in floors of the pool beneath."""
    cursor = {name: min(each) for name, each in taken["cursor without SQL"].items()}
    for pool, stock, ours in (("native", "stock", "ours"), ("dj", "dj stock", "dj ours")):
        floor = min(taken["floor"][pool])
        more = cursor[ours] - cursor[stock]
        yield (
            f"A cursor without SQL, quickest round, {pool}: {more:.1f} us more than stock's, "
            f"which is {more / floor:.1f} times the floor of {floor:.1f} us."
        )


def spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def contention(results: list[Any]) -> str:
    lines = ["Three queries to a request, and nothing that a thread waits for besides:"]
    for (threads, size, rows), engines in grouped(
        results, "threads", "connections", "rows"
    ).items():
        work = f"a page of {rows} rows" if rows else "no other work"
        lines += ["", f"{threads} threads, {size} connections, {work}"]
        figures = {}
        for engine, runs in engines.items():
            per_second = statistics.median(run["requests_per_second"] for run in runs)
            p50, p99 = (statistics.median(run[p] for run in runs) for p in ("p50", "p99"))
            failed = sum(run["failed"] for run in runs)
            figures[engine] = per_second, p99
            lines.append(
                f"  {engine:<6}{per_second:>9.0f} requests/s"
                f"{p50:>9.1f} ms p50{p99:>9.1f} ms p99{failed:>5} failed"
            )
        (stock, stock_p99), (ours, ours_p99) = figures["stock"], figures["ours"]
        lines.append(
            f"  ours : stock   {ours / stock:.2f} of the requests, "
            f"{ours_p99 / stock_p99:.2f} of the p99"
        )
    return "\n".join([*lines, ""])


def throughput(results: list[Any]) -> str:
    lines = ["Requests per second, 64 threads, three queries to a request:"]
    for (work,), engines in grouped(results, "other_work").items():
        best = ideal(engines)
        lines.append(f"\n{work:g} ms of other work; ideal, as measured: {best:.0f}")
        for engine, runs in engines.items():
            each = "  ".join(
                f"{run['load']['connections'] or 'one each'}: {run['requests_per_second']:.0f}"
                + (f" ({run['failed']} failed)" if run["failed"] else "")
                for run in runs
            )
            enough = needed(runs, best)
            lines.append(
                f"  {engine:<26}{each}"
                + (f"   95 % of ideal with {enough} connections" if enough else "")
            )
        few = [run for run in engines["ours"] if run["load"]["connections"] == 4]
        for run in few:
            share = run["requests_per_second"] / best
            lines.append(f"  ours with 4 connections has {share:.2f} of the ideal")
    return "\n".join([*lines, ""])


def medians(results: list[Any]) -> list[Any]:
    """Return one result for each engine and load: the one in the middle."""
    runs: dict[str, list[Any]] = defaultdict(list)
    for result in results:
        runs[f"{result['engine']} {result['load']}"].append(result)
    middle = []
    for same in runs.values():
        same.sort(key=lambda run: run["requests_per_second"])
        middle.append(same[len(same) // 2])
    return middle


def grouped(results: list[Any], *by: str) -> dict[Any, dict[str, list[Any]]]:
    """Return results by these figures of their load, then by engine."""
    groups: dict[Any, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        figures = tuple(result["load"][each] for each in by)
        groups[figures][result["engine"]].append(result)
    return groups


def ideal(engines: dict[str, list[Any]]) -> float:
    """Return what stock does with the most connections: one for each thread."""
    most = max(engines["stock"], key=lambda run: run["load"]["connections"])
    return float(most["requests_per_second"])


def needed(runs: list[Any], best: float) -> int | None:
    """Return how few connections give 95 % of the ideal."""
    enough = [
        run["load"]["connections"]
        for run in runs
        if run["load"]["connections"] and run["requests_per_second"] >= 0.95 * best
    ]
    return min(enough, default=None)
