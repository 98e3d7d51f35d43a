"""Says what became of the requests, and what of ours must not be so."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.scenario import Result

RECOVERS_WITHIN = 2.0

COLUMNS = [
    ("fault", 12),
    ("engine", 9),
    ("faults", 7),
    ("requests", 9),
    ("may fail", 9),
    ("failed", 7),
    ("children", 9),
    ("recovery", 9),
    ("leaked", 7),
    ("lost", 5),
    ("doubled", 8),
    ("missing", 8),
]


def table(results: list[Result], header: bool) -> str:
    """Return a line for each run; `failed` is what failed without a reason."""
    lines = []
    if header:
        lines.append("".join(name.rjust(width) for name, width in COLUMNS))
    for result in results:
        values = [
            result.fault,
            result.engine,
            result.faults or "-",
            result.requests,
            sum(result.allowed.values()),
            sum(result.not_allowed.values()),
            result.children_failed,
            "-" if result.recovered_max is None else f"{result.recovered_max:.2f} s",
            "-" if result.leaked is None else result.leaked,
            result.lost,
            result.doubled,
            result.missing,
        ]
        lines.append(
            "".join(
                str(value).rjust(width)
                for value, (_, width) in zip(values, COLUMNS, strict=True)
            )
        )
        most = sorted(result.not_allowed.items(), key=lambda item: -item[1])[:3]
        lines += [f"{'':>14}{count} x {how}" for how, count in most]
    return "\n".join(lines)


def complaints(result: Result) -> Iterator[str]:
    """Yield a sentence for all that one of our engines must not do."""
    if not result.engine.endswith("ours"):
        return
    who = f"{result.fault} on {result.engine}:"
    for how, count in result.not_allowed.items():
        yield f"{who} failed {count} times without a reason: {how}"
    if result.leaked:
        yield f"{who} {result.leaked} leases are leaked"
    if result.lost:
        yield f"{who} {result.lost} connections are lost from the pool"
    if result.doubled:
        yield f"{who} {result.doubled} times two threads had one connection"
    if result.missing:
        yield f"{who} half a transaction was committed"
    if result.children_failed:
        yield f"{who} {result.children_failed} children failed"
    if result.recovered_max is not None and result.recovered_max > RECOVERS_WITHIN:
        yield f"{who} it took {result.recovered_max:.1f} s to recover"
