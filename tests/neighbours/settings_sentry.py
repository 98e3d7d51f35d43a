"""The tests' settings, for a site of one page; Sentry is told of by its init()."""

from settings import *

ROOT_URLCONF = "neighbours.visits"
MIDDLEWARE: list[str] = []
