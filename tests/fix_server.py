"""Plugin: a real PostgreSQL and an empty database before Django's settings are read."""

from __future__ import annotations

import os

import psycopg
from server import DATABASE, create_database, provide_server

provide_server()
os.environ["PGDATABASE"] = DATABASE
create_database()

with psycopg.connect(autocommit=True) as _connection:
    _connection.execute(
        "CREATE TABLE item (id serial PRIMARY KEY, name text NOT NULL UNIQUE)"
    )
