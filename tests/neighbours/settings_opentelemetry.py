"""The tests' settings, for a site of one page; its middleware is OpenTelemetry's."""

from settings import *

ROOT_URLCONF = "neighbours.visits"
MIDDLEWARE: list[str] = []
