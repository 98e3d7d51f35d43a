"""Greenlets: importing this package patches Python, and then sets Django up.

`SITE_GREEN` says by which library: gevent or eventlet.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

LIBRARY = os.environ["SITE_GREEN"]

spawn: Any
Timeout: Any
wait: Any

if LIBRARY == "gevent":
    import gevent.monkey

    gevent.monkey.patch_all()
    spawn, Timeout = gevent.spawn, gevent.Timeout

    def wait(greenlet: Any) -> Any:
        """Return what a greenlet returns, or raise what it raises."""
        return greenlet.get()

else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is deprecated
        import eventlet

    eventlet.monkey_patch()
    spawn, Timeout = eventlet.spawn, eventlet.Timeout

    def wait(greenlet: Any) -> Any:
        """Return what a greenlet returns, or raise what it raises."""
        return greenlet.wait()


import django

django.setup()
