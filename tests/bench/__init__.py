"""What early release costs, and what it gives: `nox -s bench`."""
