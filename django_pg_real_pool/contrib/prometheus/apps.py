"""Starts the metrics when Django is ready."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured


class PrometheusConfig(AppConfig):
    """Registers the metrics with the registry that prometheus_client exports."""

    name = "django_pg_real_pool.contrib.prometheus"
    label = "django_pg_real_pool_prometheus"

    def ready(self) -> None:
        try:
            import prometheus_client  # noqa: F401
        except ImportError as error:
            raise ImproperlyConfigured(
                "django_pg_real_pool.contrib.prometheus needs prometheus_client, which is "
                "not installed. Install it: pip install prometheus-client"
            ) from error
        from .exporter import start

        start()
