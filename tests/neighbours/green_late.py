"""A program that patches Python too late, and is told so by the checks."""

from __future__ import annotations

import django

django.setup()

import gevent.monkey
from django.core.management import call_command

gevent.monkey.patch_all()
call_command("check", databases=["default"])
