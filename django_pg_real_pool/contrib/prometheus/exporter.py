"""The nine metrics, as Prometheus has them.

The names are made of OpenTelemetry's as its mapping says: dots become underscores, seconds
are said at the end, and a counter ends in `_total`.

With `PROMETHEUS_MULTIPROC_DIR` each process writes into files of its own, and any of them
answers for all.  It can't ask the others how their pools are now, so each writes that down
every second, from its first lease on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ... import observers
from .. import metrics
from ..metrics import BUCKETS, HOLD, POOL, PREFIX, STATE

#: Seconds between two looks at the pools of this process.
INTERVAL = 1.0


def name_of(metric: metrics.Metric) -> str:
    """Return Prometheus's name of a metric; a counter's client adds `_total`."""
    unit = "_seconds" if metric.unit == "s" else ""
    return label_of(PREFIX + metric.name) + unit


def label_of(attribute: str) -> str:
    return attribute.replace(".", "_")


_POOL, _STATE, _HOLD = map(label_of, (POOL, STATE, HOLD))


def _labels_of(metric: metrics.Metric) -> list[str]:
    return [_POOL, _STATE] if metric is metrics.COUNT else [_POOL]


class PoolCollector(Collector):
    """Asks the pools of this process when somebody asks for the metrics."""

    def describe(self) -> Iterable[Metric]:
        return ()  # so that the registry does not collect in order to know the names

    def collect(self) -> Iterable[Metric]:
        families = {
            metric: GaugeMetricFamily(
                name_of(metric), metric.description, labels=_labels_of(metric)
            )
            for metric in metrics.OF_CENSUS
        }
        for metric, alias, state, value in metrics.readings():
            labels = [alias] if state is None else [alias, state]
            families[metric].add_metric(labels, value)
        return families.values()


class PoolWriter:
    """Writes every second how the pools of this process are, for others to read."""

    def __init__(self) -> None:
        self._gauges = {
            metric: Gauge(
                name_of(metric),
                metric.description,
                _labels_of(metric),
                multiprocess_mode="livesum",
            )
            for metric in metrics.OF_CENSUS
        }
        #: What was written last: of a pool that is gone, there is nothing now.
        self._written: set[Any] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start in this process, if it has not: a forked child has no thread but one."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, name="django-pg-real-pool-metrics", daemon=True
            )
            self._thread.start()

    def _run(self) -> None:
        while threading.current_thread() is self._thread:  # two may have been started
            with observers.at_work:
                self.write()
            time.sleep(INTERVAL)

    def write(self) -> None:
        written = {
            self._gauges[metric].labels(
                *([alias] if state is None else [alias, state])
            ): value
            for metric, alias, state, value in metrics.readings()
        }
        for gauge in self._written - written.keys():
            gauge.set(0)
        for gauge, value in written.items():
            gauge.set(value)
        self._written = set(written)


class Recorder(observers.Observer):
    """Counts and times what happens."""

    def __init__(self, writer: PoolWriter | None) -> None:
        self._writer = writer
        self._timeouts = Counter(
            name_of(metrics.TIMEOUTS), metrics.TIMEOUTS.description, [_POOL]
        )
        self._create_time, self._wait_time, self._use_time = (
            Histogram(
                name_of(metric),
                metric.description,
                [_POOL, _HOLD] if metric is metrics.USE_TIME else [_POOL],
                buckets=BUCKETS,
            )
            for metric in metrics.HISTOGRAMS
        )
        #: What `labels()` would look up for each lease: by alias, and by alias and hold.
        self._waits: dict[str, Any] = {}
        self._uses: dict[tuple[str, str], Any] = {}

    def given_back(self, lease: observers.Lease) -> None:
        alias, hold = lease.alias, lease.longest_hold
        try:
            wait, use = self._waits[alias], self._uses[alias, hold]
        except KeyError:
            wait = self._waits[alias] = self._wait_time.labels(alias)
            use = self._uses[alias, hold] = self._use_time.labels(alias, hold)
            self._timeouts.labels(alias)  # none is 0, so that the first is an increase
        wait.observe(lease.waited)
        use.observe(lease.seconds)
        if self._writer is not None:
            self._writer.start()

    def timed_out(self, alias: str, waited: float) -> None:
        self._timeouts.labels(alias).inc()

    def connection_made(self, alias: str, seconds: float) -> None:
        self._create_time.labels(alias).observe(seconds)


_recorder: Recorder | None = None


def start() -> None:
    """Begin to measure; again is once."""
    global _recorder
    if _recorder is not None:
        return
    writer = PoolWriter() if "PROMETHEUS_MULTIPROC_DIR" in os.environ else None
    if writer is None:
        REGISTRY.register(PoolCollector())
    _recorder = Recorder(writer)
    observers.add(_recorder)
