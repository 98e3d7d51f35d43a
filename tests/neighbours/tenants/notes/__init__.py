"""Each tenant has a table of its own of these."""
