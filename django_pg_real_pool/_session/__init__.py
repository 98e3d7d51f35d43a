"""Which statements change a session beyond their transaction?

`changes_session()` reads the text of a statement and names what it changes, or returns
None.  It must never say None wrongly, because the session may be another user's next;
saying too much only keeps a connection longer.  Where it leans that way on purpose:

- a `DO` block that has one of the words below, or EXECUTE, anywhere in its body;
- `set_config(...)` whose third argument is not literally true;
- a string that calls one of the functions below: some functions run what they are given
  (`query_to_xml`, `ts_stat`, ...);
- a string with the name of the temporary schema, which may be the new `search_path`;
- text that can't be taken apart with certainty (an unfinished quote, a backslash in a
  plain string, a Unicode-escaped name) and has one of the words anywhere;
- a query that is no text at all, of a kind that is not known here.

What a function changes inside the server can't be seen from here, nor code that is
handed over as a parameter, or spelt in the escapes of a string.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from .scanner import Token, Unclear, tokens

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
#: What `DISCARD ALL` leaves as it is, so that only another connection will do.
BEYOND_RESET = {
    *("LOAD", "setseed()", "dblink_connect()"),
    *("replication origin", "replication slot", "backup"),
}
#: What certainly is true to `set_config()`.
TRUE = {Token("word", "true"), Token("string", "'true'"), Token("string", "'t'")}
#: Words that make a temporary object where they follow CREATE or INTO.
TEMPORARY = ("temp", "temporary")
#: A name that is the session's own, wherever it appears.
TEMPORARY_SCHEMA = "pg_temp"
#: The view whose UPDATE is a SET.
SETTINGS_VIEW = "pg_settings"

#: No rule applies to a text with none of these in it, which is quickest to see: each
#: word of the tables above has one.
_TRACES = (
    *("set", "listen", "prepare", "deallocate", "load", "discard", "advisory"),
    *("dblink", "origin", "replication", "backup", "temp", "hold", "do", "u&"),
)
#: Nor to one with none of the words themselves.
_SUSPECT = re.compile(
    r"(?<![^\W_])(?:"
    + "|".join([*FIRST_WORDS, *FUNCTIONS, *TEMPORARY, "hold", "do", SETTINGS_VIEW])
    + r")(?!\w)|pg_temp|u&",
    re.IGNORECASE,
)
#: The same, quicker and not so exact.
_SUSPECT_WORDS = {*FIRST_WORDS, *FUNCTIONS, *TEMPORARY, "hold", "do", SETTINGS_VIEW}
_WORD = re.compile(r"[a-z_]\w*", re.ASCII)
_ANYWHERE = re.compile(r"pg_temp|u&")
#: The same in a string that is code, or may be.
_SUSPECT_CODE = re.compile(_SUSPECT.pattern + r"|execute|\\", re.IGNORECASE)
_SUSPECT_CALL = re.compile(r"(?<![^\W_])(" + "|".join(FUNCTIONS) + r")\W*\(", re.IGNORECASE)

#: The kinds of tokens that may be code for somebody.
_STRINGS = ("string", "escaped", "dollar")


def _analyse(sql: str) -> str | None:
    """Return what `sql`, one statement or several, changes of its session; or None."""
    # Tracing tools end each statement with a comment that no other statement has.
    statement = _without_last_comment(sql)
    if len(statement) == len(sql) or len(statement) > _CACHED_LENGTH:
        return _read(statement)
    return _read_cached(statement)


def _without_last_comment(sql: str) -> str:
    """Return `sql` without a comment at its end, if it has one in a single line.

    What looks like one may begin in a string or in another comment.  Then there is
    nothing for its end to end, so the server refuses the text, and all of it: unless
    that end is a comment itself, behind `--`.
    """
    if not sql.endswith("*/"):
        return sql
    start = sql.rfind("/*", 0, -2)
    comment = sql[start:-2]
    if start < 0 or any(mark in comment for mark in ("*/", "--", "\n", "\r")):
        return sql
    return sql[:start]


def _read(sql: str) -> str | None:
    folded = sql.lower()
    if not any(trace in folded for trace in _TRACES):
        return None
    if _SUSPECT_WORDS.isdisjoint(_WORD.findall(folded)) and not _ANYWHERE.search(folded):
        return None
    suspect = _SUSPECT.search(sql)
    if suspect is None:
        return None
    changes: list[str] = []
    try:
        statement: list[Token] = []
        for token in [*tokens(sql), Token("other", ";")]:
            if token.text == ";" and token.kind == "other":
                changes += _changes_by(statement)
                statement = []
            else:
                statement.append(token)
    except Unclear:
        changes = [f"unclear statement with {suspect.group()!r}", *_beyond_reset_in(sql)]
    # Of several, that which decides how the session must be cleaned.
    changes.sort(key=lambda change: change not in BEYOND_RESET)
    return changes[0] if changes else None


def _changes_by(statement: list[Token]) -> Iterator[str]:
    """Yield what one statement changes.  The rules are in the tables above."""
    words = [token.text if token.kind == "word" else "" for token in statement]
    first, second, *_ = [*words, "", ""]
    if first in FIRST_WORDS and (
        (first, second) not in HARMLESS
        or any(token.text in AFTER_A_NAME for token in statement[2:3])
    ):
        yield FIRST_WORDS[first]
    for position, token in enumerate(statement):
        text = token.text
        if token.kind in _STRINGS:
            yield from _changes_by_string(words, text)
        elif token.kind not in ("word", "name"):
            continue
        elif text in FUNCTIONS and _follows(statement, position, "("):
            if text != "set_config" or not _is_local(statement, position + 2):
                yield FUNCTIONS[text]
        elif text.startswith(TEMPORARY_SCHEMA):
            yield "temporary object"
        elif text == SETTINGS_VIEW and "update" in words:
            yield "UPDATE pg_settings"
        elif (
            text in TEMPORARY and token.kind == "word" and _makes_temporary(words, position)
        ):
            yield "temporary object"
        elif text == "hold" and first == "declare" and words[position - 1] == "with":
            yield "cursor WITH HOLD"


def _changes_by_string(words: list[str], text: str) -> Iterator[str]:
    """Yield what a string changes if the server runs it, as a part of a statement."""
    if words[0] == "do":
        if _SUSPECT_CODE.search(text):
            yield "DO block"
            yield from _beyond_reset_in(text)
    elif TEMPORARY_SCHEMA in text.lower():
        yield "temporary object"
    elif words[0] != "create" or not {"function", "procedure"}.intersection(words[1:4]):
        # Otherwise it is the body of something that will run at another time.
        for call in _SUSPECT_CALL.findall(text):
            yield FUNCTIONS[call.lower()]


def _beyond_reset_in(code: str) -> Iterator[str]:
    """Yield what `code`, of which only the words are known, may change beyond a reset."""
    known = {**FIRST_WORDS, **FUNCTIONS}
    for word in _WORD.findall(code.lower()):
        if known.get(word) in BEYOND_RESET:
            yield known[word]


def _follows(statement: list[Token], position: int, text: str) -> bool:
    return position + 1 < len(statement) and statement[position + 1].text == text


def _makes_temporary(words: list[str], position: int) -> bool:
    """Return whether the TEMP at `position` makes something that outlives COMMIT."""
    before = words[max(0, position - 4) : position]
    if "into" in before[-2:]:
        return words[0] not in ("insert", "merge")
    dropped_at_commit = any(
        words[start : start + 3] == ["on", "commit", "drop"] for start in range(len(words))
    )
    return "create" in before and not dropped_at_commit


def _is_local(statement: list[Token], position: int) -> bool:
    """Return whether the arguments that begin at `position` end with a plain true."""
    depth, argument = 0, 0
    last: list[Token] = []
    for token in statement[position:]:
        if token.kind == "other":
            if token.text == ")" and depth == 0:
                return argument == 2 and len(last) == 1 and last[0] in TRUE
            if token.text == "," and depth == 0:
                argument, last = argument + 1, []
                continue
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(token.text, 0)
        last.append(token)
    return False


_analyse_cached = lru_cache(maxsize=2048)(_analyse)
_read_cached = lru_cache(maxsize=2048)(_read)

#: Longer texts are seldom seen twice, and would fill the memory.
_CACHED_LENGTH = 4096


def changes_session(query: Any, context: Any = None) -> str | None:
    """Return, in a few words, what `query` changes of its session; None if nothing.

    `query` is what a cursor's `execute()` takes: text, or psycopg's `sql.Composable`,
    for which `context` is the connection that it will be quoted for.
    """
    if type(query) is str and len(query) <= _CACHED_LENGTH:
        return _analyse_cached(query)
    if isinstance(query, bytes):
        try:
            query = query.decode()
        except UnicodeDecodeError:
            return "query in an unknown encoding"
    elif not isinstance(query, str):
        if not hasattr(query, "as_string"):
            return f"query of unknown kind {type(query).__name__}"
        query = query.as_string(context)
    if len(query) > _CACHED_LENGTH:
        return _analyse(query)
    return _analyse_cached(query)


def function_changes_session(name: Any, context: Any = None) -> str | None:
    """Return what calling the function `name`, as by `callproc()`, changes."""
    text = name if isinstance(name, str) else name.as_string(context)
    return _analyse_cached(f"SELECT {text}()")
