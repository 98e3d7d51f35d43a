"""Django settings with a MariaDB of the session's own, beside the PostgreSQL of all tests."""

from __future__ import annotations

import atexit
import os
from contextlib import ExitStack

from settings import *
from settings import DATABASES, queue_pool

from neighbours.dj_mysql.server import DATABASE, USER, private_server

_server = ExitStack()
_owner = os.getpid()
HOST = _server.enter_context(private_server())


@atexit.register
def _stop() -> None:
    if os.getpid() == _owner:  # a forked child inherits this, but not the server
        _server.close()


for _alias, _engine in {
    "mysql_dj": "neighbours.dj_mysql.engine",
    "stock_mysql_dj": "dj_db_conn_pool.backends.mysql",
}.items():
    DATABASES[_alias] = {
        "ENGINE": _engine,
        "NAME": DATABASE,
        "USER": USER,
        "HOST": HOST,
        **queue_pool(2, 5),
    }
