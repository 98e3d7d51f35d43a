"""Django settings in which django-db-connection-pool's PostGIS backend works on stock.

With its ping, on by default, a connection that was used before comes with a transaction
open, and Django can't connect: the backend has not the dialect that its sibling has.  The
engine that is made from it does without that ping.
"""

from __future__ import annotations

from settings import *
from settings import DATABASES

for _alias, _settings in DATABASES.items():
    if _alias.endswith("dj"):
        _settings["POOL_OPTIONS"] = {**_settings["POOL_OPTIONS"], "PRE_PING": False}
