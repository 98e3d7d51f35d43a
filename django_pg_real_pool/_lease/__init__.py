"""The heart: why a wrapper has a connection, and what is owed before another may get it.

Nothing in here knows Django's wrapper classes or a pool's; they are reached through the
objects that a lease was made with.
"""
