"""What gunicorn reads first: with `--preload`, Python is to be patched before the project."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()
