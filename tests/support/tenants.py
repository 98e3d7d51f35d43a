"""Ways in which somebody sets the tenant of a session, and how that is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import sql

#: Roles that every server has, so that a tenant may be one.
TENANTS = RED, BLUE = ("pg_monitor", "pg_read_all_stats")

#: What a session sees, in whichever of these ways its tenant was set.
TENANT = (
    "SELECT coalesce(nullif(split_part(current_setting('app.tenant', true), ';', 1), ''), "
    "nullif(current_user, session_user))"
)

#: Sets the tenant by a cursor; the second of the texts is put before each statement.
Way = Callable[[Any, str, str], None]


def by_a_setting(cursor: Any, tenant: str, before: str) -> None:
    cursor.execute(f"{before}SET app.tenant = '{tenant}'")


def by_a_role(cursor: Any, tenant: str, before: str) -> None:
    cursor.execute(f"{before}SET ROLE {tenant}")


def by_two_at_once(cursor: Any, tenant: str, before: str) -> None:
    cursor.execute(f"{before}SET app.tenant = '{tenant}'; SET app.other = '1'")


def by_a_comment_and_a_setting(cursor: Any, tenant: str, before: str) -> None:
    cursor.execute(f"{before}/* of {tenant} */ SET app.tenant = '{tenant}'")


def by_a_value_with_a_semicolon(cursor: Any, tenant: str, before: str) -> None:
    cursor.execute(f"{before}SET app.tenant = '{tenant};1'")


def by_a_function(cursor: Any, tenant: str, before: str) -> None:
    cursor.execute(f"{before}SELECT set_tenant(%s)", [tenant])


def by_a_name_in_the_parameters(cursor: Any, tenant: str, before: str) -> None:
    cursor.execute(f"{before}SELECT set_config(%s, %s, false)", ["app.tenant", tenant])


def by_a_block_of_code(cursor: Any, tenant: str, before: str) -> None:
    call = f"PERFORM set_config('app.tenant', '{tenant}', false)"
    cursor.execute(f"{before}DO $$ BEGIN {call}; END $$")


def by_many_parameters(cursor: Any, tenant: str, before: str) -> None:
    values = [["app.other", "1"], ["app.tenant", tenant]]
    cursor.executemany(f"{before}SELECT set_config(%s, %s, false)", iter(values))


def by_bytes(cursor: Any, tenant: str, before: str) -> None:
    cursor.execute(f"{before}SET ROLE {tenant}".encode())


def by_a_composed_one(cursor: Any, tenant: str, before: str) -> None:
    text = sql.SQL(before + "SET ROLE {}")
    cursor.execute(text.format(sql.Identifier(tenant)))


def by_a_row_and_a_setting(cursor: Any, tenant: str, before: str) -> None:
    row = "INSERT INTO item (name) VALUES ('one; ' || gen_random_uuid())"
    cursor.execute(f"{before}{row}; SET app.tenant = '{tenant}'")


def by_a_written_setting(cursor: Any, tenant: str, before: str) -> None:
    value = f"set_config('app.tenant', '{tenant}', false)"
    cursor.execute(f"{before}INSERT INTO item (name) VALUES ({value} || gen_random_uuid())")


WAYS: list[Way] = [
    by_a_setting,
    by_a_role,
    by_two_at_once,
    by_a_comment_and_a_setting,
    by_a_value_with_a_semicolon,
    by_a_function,
    by_a_name_in_the_parameters,
    by_a_block_of_code,
    by_many_parameters,
    by_bytes,
    by_a_composed_one,
    by_a_row_and_a_setting,
    by_a_written_setting,
]


@contextmanager
def function_that_sets_it(observer: Any) -> Iterator[None]:
    """Let there be a function on the server whose call does not look like a setting."""
    observer.execute(
        "CREATE FUNCTION set_tenant(name text) RETURNS void LANGUAGE sql AS "
        "$$ SELECT set_config('app.tenant', name, false) $$"
    )
    try:
        yield
    finally:
        observer.execute("DROP FUNCTION set_tenant")
