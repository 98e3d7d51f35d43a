"""What one run gave, and the table that compares two."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Run:
    """What one run gave.  Times are in seconds since its start."""

    engine: str
    seconds: float
    threads: int
    connections: int
    #: How long a request is busy elsewhere between two visits to the database.
    other_work: float
    #: When each request began and ended.
    requests: list[tuple[float, float]]
    #: When a connection was taken from the pool (+1) or given back (-1).
    changes: list[tuple[float, int]]
    #: By the pool's own count.
    checkouts: int
    checkouts_waited: int
    #: How long they waited, all together.
    waited: float

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Run:
        return cls(**json.loads(file.read_text()))

    def ends(self) -> list[float]:
        """Return when requests ended while the run lasted, in order."""
        return sorted(end for _began, end in self.requests if end <= self.seconds)

    def requests_per_second(self) -> float:
        return len(self.ends()) / self.seconds

    def latency(self, percent: int) -> float:
        """Return a percentile of how long requests took."""
        took = [end - began for began, end in self.requests]
        return statistics.quantiles(took, n=100, method="inclusive")[percent - 1]

    def in_use(self, windows: int = 1) -> list[float]:
        """Return how many connections were in use, as the mean of each equal window."""
        width = self.seconds / windows
        steps = [(when, change) for when, change in self.changes]
        edges = [(width * (window + 1), 0) for window in range(windows)]
        means = []
        level, since, area = 0, 0.0, 0.0
        for when, change in sorted(steps + edges):
            area += level * (when - since)
            level, since = level + change, when
            if change == 0:
                means.append(area / width)
                area = 0.0
        return means


def table(stock: Run, ours: Run) -> str:
    """Compare two runs, figure by figure."""

    def row(name: str, left: object, right: object, note: str = "") -> str:
        return f"{name:<30}{left:>16}{right:>16}   {note}".rstrip()

    def waiting(run: Run) -> str:
        return f"{run.checkouts_waited:,} of {run.checkouts:,}"

    def wait(run: Run) -> str:
        return f"{run.waited / len(run.requests) * 1000:,.0f} ms"

    ratio = ours.requests_per_second() / stock.requests_per_second()
    return "\n".join(
        [
            row("", "stock", "ours"),
            row(
                "requests per second",
                f"{stock.requests_per_second():.1f}",
                f"{ours.requests_per_second():.1f}",
                f"{ratio:.1f} times as many",
            ),
            *(
                row(
                    f"a request takes, p{percent}",
                    f"{stock.latency(percent) * 1000:,.0f} ms",
                    f"{ours.latency(percent) * 1000:,.0f} ms",
                )
                for percent in (50, 99)
            ),
            row(
                "connections in use, on average",
                f"{stock.in_use()[0]:.2f} of {stock.connections}",
                f"{ours.in_use()[0]:.2f} of {ours.connections}",
            ),
            row("checkouts that waited", waiting(stock), waiting(ours)),
            row("a request waits, on average", wait(stock), wait(ours)),
        ]
    )
