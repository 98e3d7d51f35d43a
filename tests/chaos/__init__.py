"""What goes wrong in production, on purpose and for minutes: `nox -s chaos`."""
