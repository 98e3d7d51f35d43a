"""Which statements change a session beyond their transaction?

`changes_session()` reads the text of a statement and names what it changes, or returns
None.  It must never say None wrongly, because the session may be another user's next;
saying too much only keeps a connection longer.  Where it leans that way on purpose:

- a `DO` block that has one of the words, or EXECUTE, anywhere in its body;
- `set_config(...)` whose third argument is not literally true;
- a string that calls one of the functions: some functions run what they are given
  (`query_to_xml`, `ts_stat`, ...);
- a string with the name of the temporary schema, which may be the new `search_path`;
- text that can't be taken apart with certainty (an unfinished quote, a Unicode-escaped
  name) and has one of the words anywhere;
- a backslash in a plain string, where the server's `standard_conforming_strings` is not
  known, and a change, or no certainty, in one of the two readings;
- a query that is no text at all, of a kind that is not known here.

What a function changes inside the server can't be seen from here, nor code that is
handed over as a parameter, or put together from several strings.

Most texts change nothing, which `glance` sees without taking them apart; `scanner` takes
the others apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

from .glance import readings_to_scan
from .scanner import Token, Unclear, is_spelt_out, spelt_out, tokens
from .words import (
    AFTER_A_NAME,
    BEYOND_RESET,
    FIRST_WORDS,
    FUNCTIONS,
    HARMLESS,
    SEED,
    SETTINGS_VIEW,
    TEMPORARY,
    TEMPORARY_SCHEMA,
)

__all__ = [
    "BEYOND_RESET",
    "FIRST_WORDS",
    "FUNCTIONS",
    "changes_session",
    "function_changes_session",
    "only_writes_rows",
]

#: What certainly is true to `set_config()`.
TRUE = {Token("word", "true"), Token("string", "true"), Token("string", "t")}

#: No rule applies to a text that can't be taken apart and has none of these in it.
_SUSPECT = re.compile(
    r"(?<![^\W_])(?:"
    + "|".join([*FIRST_WORDS, *FUNCTIONS, *TEMPORARY, "hold", "do", SETTINGS_VIEW])
    + r")(?!\w)|pg_temp|u&",
    re.IGNORECASE,
)
#: The same in a string that is code.
_SUSPECT_CODE = re.compile(_SUSPECT.pattern + r"|execute", re.IGNORECASE)
_SUSPECT_CALL = re.compile(r"(?<![^\W_])(" + "|".join(FUNCTIONS) + r")\W*\(", re.IGNORECASE)
_WORD = re.compile(r"[a-z_]\w*", re.ASCII)

_PLAIN, _BOTH = (False,), (False, True)

#: What a statement begins with that writes rows.
_WRITES = {Token("word", each) for each in ("insert", "update", "delete", "merge")}

#: The kinds of tokens that some function may run as code.
_STRINGS = ("string", "escaped", "dollar")


class Readings(NamedTuple):
    """What a text changes where a backslash in a plain string is one, and where not."""

    plain: str | None
    escaping: str | None
    #: What to say of it where that can't be known.
    unclear: str


class TwoReadings(Exception):
    """What a text changes depends on what a backslash is to the server."""

    def __init__(self, readings: Readings) -> None:
        self.readings = readings

    def under(self, context: Any) -> str | None:
        """Return what applies to the connection that `context` is, or is a cursor of."""
        escapes = _backslash_escapes(context)
        if escapes is None:
            return self.readings.unclear
        return self.readings.escaping if escapes else self.readings.plain


def _backslash_escapes(context: Any) -> bool | None:
    """Return what the server has reported last; None if that can't be known.

    A text is taken apart by the server before any of it runs, so a SET in the text
    itself makes no difference.
    """
    try:
        info = getattr(context, "connection", context).info
        if getattr(info, "pipeline_status", 0):
            return None  # there may be a SET on its way
        status = info.parameter_status("standard_conforming_strings")
    except Exception:  # noqa: BLE001 - what stands for a cursor here can't say
        return None
    return {"on": False, "off": True}.get(status)


def _analyse(sql: str) -> str | None:
    """Return what `sql`, one statement or several, changes of its session; or None.

    Raises TwoReadings, so that the caller need not test what is nearly always None.
    """
    # Tracing tools end each statement with a comment that no other statement has.
    statement = _without_last_comment(sql)
    if len(statement) <= _CACHED_LENGTH and (
        len(statement) < len(sql) or "\\" in sql  # no cache remembers an exception
    ):
        found = _readings_cached(statement)
    else:
        found = _readings(statement)
    if isinstance(found, Readings):
        raise TwoReadings(found)
    return found


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


def _readings(sql: str) -> str | Readings | None:
    if "\\" not in sql:
        return _scan(sql, False) if readings_to_scan(sql, _PLAIN) else None
    to_scan = readings_to_scan(sql, _BOTH)
    plain, escaping = (_scan(sql, each) if each in to_scan else None for each in _BOTH)
    return plain if plain == escaping else Readings(plain, escaping, _unclear(sql))


def _scan(sql: str, escapes: bool) -> str | None:
    """Return what `sql` changes, where a backslash in a plain string escapes or not."""
    sql = sql.partition("\0")[0]  # the driver sends no more than that
    changes: list[str] = []
    try:
        statement: list[Token] = []
        for token in [*tokens(sql, escapes), Token("other", ";")]:
            if token.text == ";" and token.kind == "other":
                changes += _changes_by(statement, escapes)
                statement = []
            else:
                statement.append(token)
    except Unclear:
        return _unclear(sql) if _SUSPECT.search(_all_of(sql, escapes)) else None
    return _worst(changes)


def _unclear(sql: str) -> str:
    code = _all_of(sql, escapes=True)
    suspect = _SUSPECT.search(code)
    what = repr(suspect.group()) if suspect else "a backslash"
    return _worst([f"unclear statement with {what}", *_beyond_reset_in(code)]) or ""


def _worst(changes: list[str]) -> str | None:
    """Return the one of `changes` that decides how the session must be cleaned."""
    changes.sort(key=lambda change: change not in BEYOND_RESET)
    return changes[0] if changes else None


def _all_of(code: str, escapes: bool) -> str:
    """Return `code` with all words that are in it, also if only its strings have them."""
    if is_spelt_out(code):
        return code
    try:
        values = [each.text for each in tokens(code, escapes) if each.kind in _STRINGS]
    except Unclear:
        values = [spelt_out(code)]
    return "\n".join([code, *values])


def _changes_by(statement: list[Token], escapes: bool) -> Iterator[str]:
    """Yield what one statement changes.  The rules are in the tables above."""
    words = [token.text if token.kind == "word" else "" for token in statement]
    first, second, *_ = [*words, "", ""]
    if first in FIRST_WORDS and (
        (first, second) not in HARMLESS
        or any(token.text in AFTER_A_NAME for token in statement[2:3])
    ):
        yield FIRST_WORDS[first]
    if first == "set" and _names_the_seed(statement, second):
        yield FUNCTIONS["setseed"]
    for position, token in enumerate(statement):
        text = token.text
        if token.kind in _STRINGS:
            yield from _changes_by_string(words, text, escapes)
        elif token.kind not in ("word", "name"):
            continue
        elif text in FUNCTIONS and _follows(statement, position, "("):
            if text != "set_config" or not _is_local(statement, position + 2):
                yield FUNCTIONS[text]
            elif _begin_with_the_seed(statement, position + 2):
                yield FUNCTIONS["setseed"]
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


def _changes_by_string(words: list[str], text: str, escapes: bool) -> Iterator[str]:
    """Yield what a string changes if the server runs it, as a part of a statement."""
    code = _all_of(text, escapes)
    if words[0] == "do":
        if _SUSPECT_CODE.search(code):
            yield "DO block"
            yield from _beyond_reset_in(code)
    elif TEMPORARY_SCHEMA in code.lower():
        yield "temporary object"
    elif not _makes_code(words):  # which will run at another time
        for call in _SUSPECT_CALL.findall(code):
            yield FUNCTIONS[call.lower()]


def _makes_code(words: list[str]) -> bool:
    """Return whether a statement makes a function, of which its strings are the body."""
    kind = words[3:4] if words[1:3] == ["or", "replace"] else words[1:2]
    return words[0] == "create" and kind in (["function"], ["procedure"])


def _beyond_reset_in(code: str) -> Iterator[str]:
    """Yield what `code`, of which only the words are known, may change beyond a reset."""
    known = {**FIRST_WORDS, **FUNCTIONS, SEED: FUNCTIONS["setseed"]}
    for word in _WORD.findall(code.lower()):
        if known.get(word) in BEYOND_RESET:
            yield known[word]


def _names_the_seed(statement: list[Token], second: str) -> bool:
    """Return whether a SET is that of the seed, which LOCAL does not confine."""
    position = 2 if second in ("session", "local") else 1
    return (
        position + 1 < len(statement)
        and statement[position].text.lower() == SEED
        and statement[position + 1].text in ("=", "to")
    )


def _begin_with_the_seed(statement: list[Token], position: int) -> bool:
    """Return whether that setting is the first of the arguments at `position`."""
    first = takewhile(lambda token: token.text != ",", statement[position:])
    return any(token.text.lower() == SEED for token in first)


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
_readings_cached = lru_cache(maxsize=2048)(_readings)

#: Longer texts are seldom seen twice, and would fill the memory.
_CACHED_LENGTH = 4096


def changes_session(query: Any, context: Any = None) -> str | None:
    """Return, in a few words, what `query` changes of its session; None if nothing.

    `query` is what a cursor's `execute()` takes: text, or psycopg's `sql.Composable`.
    `context` is the connection that it will run on, or a cursor of that.
    """
    try:
        if type(query) is str and len(query) <= _CACHED_LENGTH:
            return _analyse_cached(query)
        return _changes_by_query(query, context)
    except TwoReadings as found:
        return found.under(context)


def function_changes_session(name: Any, context: Any = None) -> str | None:
    """Return what calling the function `name`, as by `callproc()`, changes."""
    text = _plain_text(name, context)
    if text is None:
        return f"function of unknown kind {type(name).__name__}"
    return changes_session(f"SELECT {text}()", context)


def only_writes_rows(sql: str) -> bool:
    """Return whether `sql` is one statement that writes rows and changes no session."""
    try:
        found = list(tokens(sql))
    except Unclear:
        return False
    return (
        bool(_WRITES.intersection(found[:1]))
        and Token("other", ";") not in found[:-1]
        and changes_session(sql) is None
    )


def _changes_by_query(query: Any, context: Any) -> str | None:
    try:
        sql = _plain_text(query, context)
    except UnicodeDecodeError:
        return "query in an unknown encoding"
    if sql is None:
        return f"query of unknown kind {type(query).__name__}"
    if len(sql) <= _CACHED_LENGTH:
        return _analyse_cached(sql)
    if "\\" in sql and (escapes := _backslash_escapes(context)) is not None:
        return _scan(sql, escapes) if readings_to_scan(sql, (escapes,)) else None
    return _analyse(sql)


def _plain_text(query: Any, context: Any) -> str | None:
    """Return the text that the driver sends for `query`; None if that can't be known."""
    kind = type(query)
    if issubclass(kind, bytes):
        return bytes.decode(query)
    if not issubclass(kind, str):
        if not hasattr(query, "as_string"):
            return None
        query = query.as_string(context)
    if not issubclass(type(query), str) or type(query).encode is not str.encode:
        return None  # what the driver sends is what that returns
    # Whatever a class of its own makes of str(), of hash() or of lower().
    return str.__str__(query)
