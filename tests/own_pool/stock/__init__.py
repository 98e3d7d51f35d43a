"""The same wrapper as it is, to compare with."""
