"""Tests with real packages of others, each run by a session of its own: `nox -l`."""
