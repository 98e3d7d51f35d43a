"""Metrics for OpenTelemetry: `opentelemetry-instrument` finds this by itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from .. import observers
from . import metrics
from .metrics import HOLD, POOL, PREFIX, STATE, Metric

try:
    from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
        BaseInstrumentor,
    )
    from opentelemetry.metrics import CallbackOptions, Observation, get_meter
except ImportError as error:
    raise ImproperlyConfigured(
        "django_pg_real_pool.contrib.opentelemetry needs opentelemetry-api and "
        "opentelemetry-instrumentation, and not both are installed. Install them: "
        "pip install opentelemetry-instrumentation"
    ) from error


class RealPoolInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Exports the nine metrics of the semantic conventions for each alias's pool."""

    #: What hears of leases; None: it is not instrumented.
    _recorder: _Recorder | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("django >= 5.1",)

    def _instrument(self, **kwargs: Any) -> None:
        """Begin.  `meter_provider` is the one to use, or else the global one."""
        meter = get_meter(
            "django_pg_real_pool",
            meter_provider=kwargs.get("meter_provider"),
            schema_url="https://opentelemetry.io/schemas/1.44.0",
        )
        recorder = self._recorder = _Recorder(meter)
        for metric in metrics.OF_CENSUS:
            meter.create_observable_up_down_counter(
                callbacks=[self._reader_of(metric, recorder)], **_named(metric)
            )
        observers.add(recorder)

    def _uninstrument(self, **kwargs: Any) -> None:
        if self._recorder is not None:
            observers.remove(self._recorder)
            self._recorder = None

    def _reader_of(
        self, metric: Metric, recorder: _Recorder
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(options: CallbackOptions) -> Iterable[Observation]:
            if self._recorder is not recorder:
                return  # uninstrumented since: OpenTelemetry keeps its callbacks
            for reading in metrics.readings():
                if reading.metric is metric:
                    attributes = {POOL: reading.alias}
                    if reading.state is not None:
                        attributes[STATE] = reading.state
                    yield Observation(reading.value, attributes)

        return read


def _named(metric: Metric) -> dict[str, str]:
    return {
        "name": PREFIX + metric.name,
        "unit": metric.unit,
        "description": metric.description,
    }


class _Recorder(observers.Observer):
    def __init__(self, meter: Any) -> None:
        self._timeouts = meter.create_counter(**_named(metrics.TIMEOUTS))
        self._create_time, self._wait_time, self._use_time = (
            meter.create_histogram(
                explicit_bucket_boundaries_advisory=metrics.BUCKETS, **_named(metric)
            )
            for metric in metrics.HISTOGRAMS
        )

    def given_back(self, lease: observers.Lease) -> None:
        pool = {POOL: lease.alias}
        self._wait_time.record(lease.waited, pool)
        self._use_time.record(lease.seconds, {**pool, HOLD: lease.longest_hold})

    def timed_out(self, alias: str, waited: float) -> None:
        self._timeouts.add(1, {POOL: alias})

    def connection_made(self, alias: str, seconds: float) -> None:
        self._create_time.record(seconds, {POOL: alias})
