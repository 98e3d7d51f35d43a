"""Plugin: a real PostgreSQL and an empty database before Django's settings are read."""

from __future__ import annotations

import os

import psycopg
from psycopg import sql
from server import DATABASE, create_database, provide_server

provide_server()
os.environ["PGDATABASE"] = DATABASE
create_database()

with psycopg.connect(autocommit=True) as _connection:
    _connection.execute(
        "CREATE TABLE item (id serial PRIMARY KEY, name text NOT NULL UNIQUE)"
    )
    for _name in os.environ.get("REAL_POOL_EXTENSIONS", "").split():
        _connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(_name)))
