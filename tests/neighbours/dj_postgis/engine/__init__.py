"""Two lines."""
