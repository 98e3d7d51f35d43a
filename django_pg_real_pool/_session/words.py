"""The words that the rules of this room know: which of them change a session, and how."""

from __future__ import annotations

#: A statement that begins with this word changes the session ...
FIRST_WORDS = {
    "set": "SET",
    "reset": "RESET",
    "listen": "LISTEN",
    "unlisten": "UNLISTEN",
    "prepare": "PREPARE",
    "deallocate": "DEALLOCATE",
    "load": "LOAD",
    "discard": "DISCARD",
}
#: ... unless it is one of these, which end with the transaction, or with nothing ...
HARMLESS = {
    ("set", "local"),
    ("set", "transaction"),
    ("set", "constraints"),
    ("prepare", "transaction"),
}
#: ... which it is not where one of these is third: there the second word is a name, as
#: in `SET local.tenant = 1` or `PREPARE transaction AS SELECT 1`.
AFTER_A_NAME = {".", "=", "to", "as", "("}
#: Calling one of these changes the session.
FUNCTIONS = {
    "set_config": "set_config()",
    "pg_advisory_lock": "session-level advisory lock",
    "pg_advisory_lock_shared": "session-level advisory lock",
    "pg_try_advisory_lock": "session-level advisory lock",
    "pg_try_advisory_lock_shared": "session-level advisory lock",
    "pg_advisory_unlock": "session-level advisory lock",
    "pg_advisory_unlock_shared": "session-level advisory lock",
    "pg_advisory_unlock_all": "session-level advisory lock",
    "setseed": "setseed()",
    "set_limit": "set_limit()",
    "dblink_connect": "dblink_connect()",
    "dblink_connect_u": "dblink_connect()",
    "dblink_disconnect": "dblink_disconnect()",
    "pg_replication_origin_session_setup": "replication origin",
    "pg_replication_origin_session_reset": "replication origin",
    "pg_create_logical_replication_slot": "replication slot",
    "pg_create_physical_replication_slot": "replication slot",
    "pg_copy_logical_replication_slot": "replication slot",
    "pg_copy_physical_replication_slot": "replication slot",
    "pg_backup_start": "backup",
    "pg_start_backup": "backup",
}
#: The setting that SET, with or without LOCAL, hands on to setseed().
SEED = "seed"
#: What `DISCARD ALL` leaves as it is, so that only another connection will do.
BEYOND_RESET = {
    *("LOAD", "setseed()", "dblink_connect()"),
    *("replication origin", "replication slot", "backup"),
}
#: Words that make a temporary object where they follow CREATE or INTO.
TEMPORARY = ("temp", "temporary")
#: A name that is the session's own, wherever it appears.
TEMPORARY_SCHEMA = "pg_temp"
#: The view whose UPDATE is a SET.
SETTINGS_VIEW = "pg_settings"
