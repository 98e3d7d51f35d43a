"""What a WSGI server runs."""

from __future__ import annotations

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()

from .work import query_early  # the settings are to be there

query_early()
