"""Runs Django's own test suite on an engine and on its stock, and compares the results."""
