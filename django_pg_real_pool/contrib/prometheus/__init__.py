"""Metrics for Prometheus: add this to `INSTALLED_APPS`."""
