"""The one that is recommended."""
