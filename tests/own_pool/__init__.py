"""A backend as a user would write one: a pooled wrapper, and the factory called on it."""
