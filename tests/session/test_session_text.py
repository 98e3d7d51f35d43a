"""The detection of statements that change their session: what it says, and who is right.

A wrong "no" is a security defect, so each verdict is compared with a real server: where
a session has really changed, the verdict must not be None.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.utils.safestring import SafeString
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import sql
from session_cases import CASES, CHANGES, REFUSED, ROLE, SAME, Case
from sessions import session_of

from django_pg_real_pool._session import (
    BEYOND_RESET,
    FIRST_WORDS,
    FUNCTIONS,
    changes_session,
    function_changes_session,
    only_writes_rows,
)
from django_pg_real_pool._session import _scan as scanned
from django_pg_real_pool._session.glance import readings_to_scan
from django_pg_real_pool._session.scanner import Unclear, tokens

#: How many random texts the real server is asked about.
TEXTS = int(os.environ.get("SESSION_TEXTS", "4000"))


# ##### The table #####


def test_the_table_has_enough_statements_of_every_sort() -> None:
    """S1: at least 150 statements, each once; each word and each function has some."""
    assert len({case.text for case in CASES}) >= 150
    assert not [text for text, count in Counter(c.text for c in CASES).items() if count > 2]
    named = {case.change for case in CASES}
    assert named >= {*FIRST_WORDS.values(), *FUNCTIONS.values(), *BEYOND_RESET, None}


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.text))
def test_the_verdict_of_the_table(case: Case) -> None:
    """S1: the change is named, or there is none."""
    assert changes_session(case.text) == case.change, case.why


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A connection that makes what the cases need, and mends what they break."""
    with psycopg.connect(autocommit=True) as connection:
        connection.execute(f"DROP ROLE IF EXISTS {ROLE}")
        connection.execute(f"CREATE ROLE {ROLE}")
        yield connection
        connection.execute(f"DROP OWNED BY {ROLE}")
        connection.execute(f"DROP ROLE {ROLE}")


def run(connection: Any, text: str) -> bool:
    """Run a text as one simple query; return whether the server accepted it all."""
    pgconn = connection.pgconn
    pgconn.send_query(text.encode())
    accepted = True
    while (result := pgconn.get_result()) is not None:
        if result.status == psycopg.pq.ExecStatus.COPY_OUT:
            while pgconn.get_copy_data(0)[0] > 0:
                pass
        accepted &= result.status != psycopg.pq.ExecStatus.FATAL_ERROR
    if pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        connection.rollback()
    return accepted


@contextmanager
def mended(server: Any) -> Iterator[None]:
    """Undo what a case did to the database itself."""
    yield
    server.execute(f"ALTER ROLE {ROLE} RESET ALL")
    for kind, name in [
        ("VIEW", "watcher"),
        ("TABLE", "made"),
        ("TABLE", "procedure"),
        ("TABLE", "temp"),
        ("TABLE", "t"),
    ]:
        server.execute(f"DROP {kind} IF EXISTS {name}")
    server.execute("DROP ROUTINE IF EXISTS f")
    server.execute("DROP TABLE item")
    server.execute("CREATE TABLE item (id serial PRIMARY KEY, name text NOT NULL UNIQUE)")


def test_the_table_agrees_with_a_real_server(server: Any) -> None:
    """S1: where a fresh session has changed after the statement, the verdict is not None."""
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    server.execute("SET client_min_messages = error")
    for case in CASES:
        with psycopg.connect(autocommit=True) as connection, mended(server):
            connection.execute("LOAD 'plpgsql'")  # any use of it adds to the settings
            before = session_of(connection.cursor())
            accepted = run(connection, case.text)
            try:
                after = session_of(connection.cursor())
            except psycopg.Error:  # it became a role that may not look
                connection.execute("RESET SESSION AUTHORIZATION")
                after = {**session_of(connection.cursor()), "users": "another"}
        changed = before != after
        seen[case.real] += 1
        if changed and case.change is None:
            wrong.append(f"wrong no: {case}")
        if case.real != REFUSED and (accepted, changed) != (True, case.real == CHANGES):
            wrong.append(f"accepted {accepted}, changed {changed}: {case}")
    assert not wrong, "\n".join(wrong)
    assert seen[CHANGES] > 100
    assert seen[SAME] > 100


def test_what_a_function_does_can_not_be_seen(server: Any) -> None:
    """S5: a function that calls set_config() changes the session unnoticed.

    This is the limit that the documentation names; pin_connection() is for it.
    """
    text = "SELECT hidden()"
    with psycopg.connect(autocommit=True) as connection, mended(server):
        server.execute(
            "CREATE OR REPLACE FUNCTION hidden() RETURNS text LANGUAGE sql AS "
            "$$ SELECT set_config('app.tenant', '1', false) $$"
        )
        try:
            before = session_of(connection.cursor())
            assert run(connection, text)
            assert session_of(connection.cursor()) != before
        finally:
            server.execute("DROP FUNCTION hidden()")
    assert changes_session(text) is None


# ##### Random texts, with the server as the judge #####

_QUOTES = [
    *[("'", "'"), ("E'", "'"), ("e'", "'"), ("$$", "$$"), ("$a$", "$a$"), ("$A$", "$A$")],
    *[
        ("N'", "'"),
        ("B'", "'"),
        ('1 AS "', '"'),
        ("1 /*", "*/"),
        ("1 --", "\n"),
        ("U&'", "'"),
    ],
    *[("$\u00e9$", "$\u00e9$"), ("$\u20ac$", "$\u20ac$"), ("$a", "$a"), ("1 AS a$a$", "")],
    *[("'a'\n'", "'"), ("E'a'\n'", "'"), ("'a' --'\n'", "'"), ('1 AS U&"', '"')],
]
_JUNK = [
    *[
        "'",
        "''",
        '"',
        '""',
        "\\",
        "\\'",
        "\\\\",
        "$",
        "$$",
        "$a$",
        "$A$",
        "$b$",
        "--",
        "\n",
    ],
    *["/*", "*/", "/*/", "*/*", "*", "/", ";", " ", "e", "E'", "u&'", "\u00e9", "\u20ac"],
    *["\u00a0", "\r", "1", "%", "$1", "a", "@", "+"],
]
_CHANGE = "SET app.tenant = '1'"


def random_text(chance: random.Random) -> str:
    """Return something that looks a bit like SQL, in which a SET may be code or not."""
    parts = []
    for _ in range(chance.randint(1, 4)):
        opening, closing = chance.choice(_QUOTES)
        junk = chance.choices([*_JUNK, f"; {_CHANGE};"], k=chance.randint(0, 4))
        parts.append(f"SELECT {opening}{''.join(junk)}{closing}")
        if chance.random() < 0.5:
            parts.append(_CHANGE + chance.choice(["", "--", " /*'*/", "--$a$", "--'"]))
    last = chance.choice(["", "", "/*a='b'*/", " /* it's */", "*/", "--*/"])
    return chance.choice([";", ";\n", " ; ", "/*;*/;"]).join(parts) + last


@pytest.mark.parametrize("conforming", ["on", "off"])
def test_random_quotes_hide_nothing(conforming: str) -> None:
    """S1: whatever the quotes, and whether backslashes escape: no SET is overlooked."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    seen: Counter[tuple[bool, bool]] = Counter()
    with psycopg.connect(autocommit=True) as connection:
        pgconn = connection.pgconn
        connection.execute("SET client_min_messages = error")
        connection.execute(
            sql.SQL("SET standard_conforming_strings = {}").format(sql.Literal(conforming))
        )
        connection.execute("SET escape_string_warning = off")
        for _ in range(TEXTS):
            text = random_text(chance)
            accepted = run(connection, text)
            value = pgconn.exec_(b"SELECT current_setting('app.tenant', true)")
            changed = value.get_value(0, 0) not in (None, b"")
            if changed:
                pgconn.exec_(b"RESET app.tenant")
                for context in (None, connection):
                    verdict = changes_session(text, context)
                    assert verdict is not None, f"{text!r}, seed {seed}"
            seen[accepted, changed] += 1
    # The texts are worth something: many are valid, with and without a change.
    assert seen[True, True] > TEXTS / 50, seen
    assert seen[True, False] > TEXTS / 50, seen


# ##### What must not change the verdict #####

_SPACES = st.lists(
    st.sampled_from(
        [
            *[" ", "\t", "\n", "\r\n", "\f", "/**/", "/* it's */", '/* " */', "/* $$ */"],
            *["-- it's\n", "--\n", "--\r", "/* /* ; */ SET */", "/* -- */", "-- /*\n"],
        ]
    ),
    min_size=1,
    max_size=4,
).map("".join)

#: Statements in pieces, between which a space may be anything; each with its verdict.
_PIECES: list[tuple[str | None, list[str]]] = [
    ("SET", ["SET", "search_path", "TO", "a", ",", "b"]),
    ("SET", ["SET", "SESSION", "statement_timeout", "=", "'1s'"]),
    ("SET", ["SET", "local", ".", "x", "=", "1"]),
    ("RESET", ["RESET", "ALL"]),
    ("set_config()", ["SELECT", "set_config", "(", "'a.b'", ",", "'c'", ",", "false", ")"]),
    ("session-level advisory lock", ["SELECT", "pg_advisory_lock", "(", "1", ")"]),
    ("LISTEN", ["LISTEN", "a"]),
    ("UNLISTEN", ["UNLISTEN", "*"]),
    ("PREPARE", ["PREPARE", "a", "AS", "SELECT", "1"]),
    ("DEALLOCATE", ["DEALLOCATE", "a"]),
    (
        "temporary object",
        ["CREATE", "OR", "REPLACE", "TEMP", "VIEW", "v", "AS", "SELECT", "1"],
    ),
    ("temporary object", ["SELECT", "1", "AS", "a", "INTO", "LOCAL", "TEMPORARY", "t"]),
    ("temporary object", ["CREATE", "TABLE", "pg_temp", ".", "t", "(", "a", "int", ")"]),
    ("cursor WITH HOLD", ["DECLARE", "c", "CURSOR", "WITH", "HOLD", "FOR", "SELECT", "1"]),
    ("UPDATE pg_settings", ["UPDATE", "pg_settings", "SET", "setting", "=", "'1'"]),
    ("LOAD", ["LOAD", "'a'"]),
    ("DISCARD", ["DISCARD", "ALL"]),
    ("DO block", ["DO", "LANGUAGE", "plpgsql", "'BEGIN SET a.b = 1; END'"]),
    (None, ["SET", "LOCAL", "a.b", "=", "1"]),
    (None, ["SET", "CONSTRAINTS", "ALL", "DEFERRED"]),
    (None, ["SET", "TRANSACTION", "READ", "ONLY"]),
    (None, ["PREPARE", "TRANSACTION", "'a'"]),
    (None, ["SELECT", "set_config", "(", "'a.b'", ",", "'c'", ",", "true", ")"]),
    (None, ["SELECT", "pg_try_advisory_xact_lock", "(", "1", ")"]),
    (None, ["CREATE", "TEMP", "TABLE", "t", "(", "a", "int", ")", "ON", "COMMIT", "DROP"]),
    (None, ["UPDATE", "item", "SET", "name", "=", "'SET'"]),
    (None, ["INSERT", "INTO", "temp", "VALUES", "(", "1", ")"]),
    (
        None,
        [
            "INSERT",
            "INTO",
            "item",
            "VALUES",
            "(",
            "1",
            ")",
            "ON",
            "CONFLICT",
            "DO",
            "NOTHING",
        ],
    ),
    (None, ["SELECT", "'; SET a.b = 1'", ",", "$q$; SET $q$", ",", "E'\\'; SET a.b = 1'"]),
]

_HARMLESS_NEIGHBOURS = st.sampled_from(
    [
        *[
            "SELECT 1",
            "",
            " ",
            "SELECT 'it''s; SET a = 1'",
            'SELECT 1 AS "; SET"',
            "COMMIT",
        ],
        *["SELECT $a$'$a$", "SELECT E'\\''", "BEGIN", "/* ' */", "SELECT $x$ $y$ $X$ $x$"],
        *["SELECT 1 AS a$a$", "SET LOCAL a.b = 1", "UPDATE item SET name = 'LISTEN a'"],
    ]
)


@st.composite
def disguised(draw: st.DrawFn) -> tuple[str | None, str]:
    """A statement in another case, with other spaces, among others; and its verdict."""
    verdict, pieces = draw(st.sampled_from(_PIECES))
    text = draw(_SPACES)
    for piece in pieces:
        if piece[0] not in "'$E" or piece.isalpha():
            piece = "".join(
                letter.upper() if draw(st.booleans()) else letter.lower()
                for letter in piece
            )
        text += piece + draw(_SPACES)
    before = draw(st.lists(_HARMLESS_NEIGHBOURS, max_size=2))
    after = draw(st.lists(_HARMLESS_NEIGHBOURS, max_size=2))
    return verdict, ";".join([*before, text, *after])


@given(disguised())
@settings(max_examples=400, deadline=None)
def test_a_disguise_does_not_change_the_verdict(case: tuple[str | None, str]) -> None:
    """S1: case, comments, white space, other statements in the same string."""
    verdict, text = case
    assert changes_session(text) == verdict


@given(disguised(), st.data())
@settings(max_examples=150, deadline=None)
def test_the_kind_of_query_does_not_change_the_verdict(
    case: tuple[str | None, str], data: st.DataObject
) -> None:
    """S1: text, bytes, or psycopg's composed SQL, cut into pieces anywhere."""
    verdict, text = case
    cut = data.draw(st.integers(0, len(text)))
    # Pieces that are cut here are not str literals, which is all that sql.SQL checks.
    composed = sql.SQL("{}{}").format(sql.SQL(text[:cut]), sql.SQL(text[cut:]))
    for query in (text.encode(), sql.SQL(text), composed, sql.Composed([composed])):
        assert changes_session(query) == verdict


@pytest.fixture(scope="module")
def physical() -> Iterator[Any]:
    """What psycopg before 3.2 needs, to compose a statement."""
    with psycopg.connect() as physical:
        yield physical


@given(
    st.text(
        alphabet=st.characters(blacklist_characters="\x00(_", codec="utf-8"), max_size=30
    )
)
@example("'; SET a.b = 1; --")
@example("\\'; SET a.b = 1; --")
@example('"; SET a.b = 1; --')
@settings(max_examples=300, deadline=None)
def test_a_composed_value_or_name_is_no_code(physical: Any, value: str) -> None:
    """S1: what sql.Literal and sql.Identifier quote is data, whatever it looks like.

    Of data with the name pg_temp, or that calls a function by name, it thinks the worse,
    so neither "_" nor "(" is in these.
    """
    query = sql.SQL("SELECT {}, {} FROM t").format(
        sql.Literal(value), sql.Identifier(value or "a")
    )
    assert changes_session(query, physical) is None


@pytest.mark.parametrize(
    ("function", "change"),
    [
        ("pg_advisory_lock", "session-level advisory lock"),
        ("PG_ADVISORY_LOCK", "session-level advisory lock"),
        ("pg_catalog.set_config", "set_config()"),
        ('"set_config"', "set_config()"),
        ("set_config ", "set_config()"),
        (sql.Identifier("set_config"), "set_config()"),
        (sql.Identifier("pg_catalog", "set_config"), "set_config()"),
        (sql.SQL("pg_catalog.set_config"), "set_config()"),
        (sql.Identifier("pg_temp", "f"), "temporary object"),
        ("pg_advisory_xact_lock", None),
        (sql.Identifier("lower"), None),
        ("lower", None),
    ],
)
def test_a_called_function_has_the_verdict_of_its_name(
    function: Any, change: str | None, physical: Any
) -> None:
    """S1: callproc() is given a name, perhaps with a schema."""
    assert function_changes_session(function, physical) == change


def test_a_query_of_an_unknown_kind_is_taken_for_a_change() -> None:
    """S1: leaning to yes: what can't be read is not let pass."""
    assert changes_session(12) == "query of unknown kind int"
    assert changes_session(b"SELECT '\xe9'") == "query in an unknown encoding"


def test_a_text_too_long_to_be_remembered_is_read_all_the_same() -> None:
    """S1: the cache makes no difference."""
    long = "SELECT 1 AS x" + ", 1 AS xs" * 2000
    for _ in range(2):
        assert changes_session(long) is None
        assert changes_session(long + "; SET a.b = 1") == "SET"
        assert changes_session("SET a.b = 1") == "SET"


def test_a_comment_at_the_end_costs_no_second_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C2: tracing tools end each statement with a comment that no other one has."""
    read: list[str] = []

    def counted(text: str, escapes: bool) -> Iterator[Any]:
        read.append(text)
        return tokens(text, escapes)

    monkeypatch.setattr("django_pg_real_pool._session.tokens", counted)
    for number in range(20):
        comment = f"/*controller='page',traceparent='00-{number}-01'*/"
        assert changes_session(f"UPDATE traced SET a = '\\b' {comment}") is None
        assert changes_session(f"SELECT traced AS a$temp {comment}") is None
        assert changes_session(f"SET traced.a = 'b' {comment}") == "SET"
    assert len(read) == 2
    # These are no comments, or not only.
    assert changes_session("SELECT '/*', set_config('a.b', '', false) -- */")
    assert changes_session("SELECT 1 -- /*\n; SET a.b = 1 -- */")
    assert changes_session("SELECT 1 /*/*a*/*/; SET a.b = 1 /*/*a*/*/")
    assert changes_session("SET a.b = 1 /*/")


def test_a_word_that_only_ends_like_one_of_ours_is_none() -> None:
    """S1: a letter beyond ASCII is a letter."""
    assert changes_session("SELECT \u00e9set FROM caf\u00e9") is None


# ##### Not the text alone #####


class Loud(str):
    """A text with answers of its own, none of which the driver asks for."""

    __slots__ = ()

    def __str__(self) -> str:
        return "SELECT 1"

    def __format__(self, _: str) -> str:
        return "lower"

    def __hash__(self) -> int:
        raise AssertionError("it was hashed")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it was compared")

    def __len__(self) -> int:
        return 10**6

    def __contains__(self, _: object) -> bool:
        return False

    def lower(self) -> str:
        return "select 1"

    def startswith(self, *_: Any) -> bool:
        return False


class OtherText(str):
    """A text that sends another."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"SET app.tenant = '1'"


class OtherBytes(bytes):
    """Bytes that say to be another text; the driver sends them as they are."""

    __slots__ = ()

    def decode(self, *_: Any) -> str:
        return "SELECT 1"


class Promise:
    """Something that only says to be a text."""

    __class__ = str  # type: ignore[assignment]


def test_a_text_of_another_class_is_read_as_the_plain_text() -> None:
    """S1: what the driver sends is read, whatever the class makes of str() or lower()."""
    assert changes_session(SafeString("SET safe.a = '1'")) == "SET"
    assert changes_session(SafeString("SELECT 'safe'")) is None
    assert changes_session(Loud("SET loud.a = '1'")) == "SET"
    assert changes_session(Loud("SELECT 'loud'")) is None
    assert changes_session(OtherBytes(b"SET loud.a = '1'")) == "SET"
    assert function_changes_session(Loud("set_config")) == "set_config()"
    # What these send can't be known.
    assert changes_session(OtherText("SELECT 1")) == "query of unknown kind OtherText"
    assert changes_session(Promise()) == "query of unknown kind Promise"
    assert function_changes_session(Promise()) == "function of unknown kind Promise"


def test_what_follows_a_null_byte_is_not_read() -> None:
    """S1: libpq sends what is before it."""
    assert changes_session("CREATE TEMP TABLE t (a int) \0 ON COMMIT DROP") is not None
    assert changes_session("SELECT 'a temp'; SELECT 1\0; SET a.b = 1") is None


#: What a server that takes a backslash for an escape, or not, makes of a text.
_TWO_READINGS = [
    ("SELECT '\\'; SET a.b = 1 --'", "SET", None, "unclear statement with 'SET'"),
    ("SELECT '\\', '; SET a.b = 1 --'", None, "SET", "unclear statement with 'SET'"),
    ("SELECT '\\', '; LOAD ''a''--'; SET a.b = 1", "SET", "LOAD", "LOAD"),
    ("UPDATE t SET a = a LIKE '\\' ESCAPE '\\'", None, None, None),
    ("SELECT ' a\\_b ; SET '; SET LOCAL a.b = 1", None, None, None),
    ("SELECT '\\x'; SET a.b = 1", "SET", "SET", "SET"),
    ("SET LOCAL search_path = 'pg_te\\mp'", None, "temporary object", "unclear"),
    ("DO 'BEGIN PERFORM ''\\s''; END'", None, None, None),
]


@pytest.mark.parametrize(("text", "on", "off", "unknown"), _TWO_READINGS)
def test_a_backslash_is_what_the_server_says(
    text: str, on: str | None, off: str | None, unknown: str | None
) -> None:
    """S1: the reading that applies decides; without one, both do."""
    long = " " * 5000 + text
    with psycopg.connect(autocommit=True) as connection:
        for status, verdict in (("on", on), ("off", off)):
            connection.execute(f"SET standard_conforming_strings = {status}")
            for context in (connection, connection.cursor()):
                for _ in range(2):
                    assert changes_session(text, context) == verdict
                    assert changes_session(long, context) == verdict
        with connection.pipeline():  # where a SET may be on its way
            contexts: list[Any] = [connection, None, object()]
            for context in contexts:
                for query in (text, long):
                    said = changes_session(query, context)
                    assert (said or "").startswith(unknown or "")
                    assert (said is None) == (unknown is None)
        connection.execute("SET standard_conforming_strings = on")
    if unknown is not None:
        assert changes_session(text, connection) is not None  # it is closed


@pytest.mark.parametrize(
    "text",
    [
        *["SET seed TO 0.5", "BEGIN; SET LOCAL seed = 0.5; COMMIT"],
        *["SELECT set_config('seed', '0.5', true)", "SELECT setseed(0.5)"],
    ],
)
def test_a_seed_is_the_sessions(text: str) -> None:
    """S1: the numbers that follow are known; and no reset makes them unknown."""
    with psycopg.connect(autocommit=True) as one, psycopg.connect(autocommit=True) as other:
        other.execute("SELECT setseed(0.5)")
        assert run(one, text)
        one.execute("DISCARD ALL")
        numbers = {c.execute("SELECT random()").fetchone() for c in (one, other)}
    assert len(numbers) == 1
    assert changes_session(text) in BEYOND_RESET


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("INSERT INTO item (name) VALUES (gen_random_uuid())", True),
        ("-- why\n/* who; */ update item set name = '; SET ROLE x';", True),
        ("delete from item", True),
        ("INSERT INTO item VALUES (1); SET ROLE x", False),
        ("INSERT INTO item VALUES (1); SELECT set_tenant('x')", False),
        ("INSERT INTO item (name) VALUES (set_config('app.tenant', '1', false))", False),
        ("UPDATE pg_settings SET setting = '1' WHERE name = 'app.tenant'", False),
        ("/* /* */ insert */ SET ROLE x", False),
        ("\"insert\" INTO item VALUES ('1')", False),
        ("insert into item values ('", False),
        ("SET ROLE x", False),
        ("SELECT set_tenant('x')", False),
        ("", False),
    ],
)
def test_a_statement_that_only_writes_rows_is_told_from_all_others(
    text: str, expected: bool
) -> None:
    """D4, S7: it is not sent again when a session is set up again."""
    assert only_writes_rows(text) is expected


# ##### The quick look, with the scanner as the judge #####

_TRICKY = [
    *["'", "'", "''", '"', '""', "\\", "\\'", "\\\\", "$$", "$a$", "$1", "--", "/*", "*/"],
    *["\n", " ", ";", ";", "E'", "e'", "N'", "B'", "X'", "U&'", 'U&"', "(", ")", ","],
    *[
        "%s",
        "%(a)s",
        "%(a'b)s",
        "%%",
        "1",
        "1e5",
        "_",
        "a",
        "E",
        "\u00e9",
        "\t",
        "\r",
        "\f",
    ],
    *["'\n'", "' -- '\n'", "'a'", "E'\\''", "'\\'", "$$ ' $$", '"a"', "/* ' */", "-- '\n"],
    *["'it''s'", "LIKE'a'", "'pg_te'\n'mp'", "E'\\x70g_temp'", "\\x5f", "\\137", "\\v"],
    *["SET ", "set", "RESET ", "LOCAL ", "DO ", "DECLARE ", "HOLD ", "WITH ", "LOAD "],
    *["TEMP ", "TEMPORARY ", "temp", "INTO ", "CREATE ", "UPDATE ", "SELECT ", "TABLE "],
    *["pg_temp", "pg_settings", "set_config(", "true)", "seed", "setseed(", "=", "."],
    *[
        "pg_advisory_lock(",
        "pg_",
        "advisory",
        "_lock(",
        "set_",
        "config(",
        "ON COMMIT DROP ",
    ],
    *["FUNCTION ", "EXECUTE ", "PREPARE ", "TRANSACTION ", "transaction.", "LISTEN "],
]


@given(
    st.lists(st.sampled_from(_TRICKY), max_size=14).map("".join),
    st.sampled_from(["", "SELECT ", "UPDATE t SET a = ", "SELECT 'a'; ", "BEGIN;"]),
    st.booleans(),
)
@example("LIKE'--', 'pg_te'\n'mp'", "SELECT ", True)
@example("'pg_t'\n'e' --\n'mp'", "SELECT ", False)
@settings(max_examples=1000, deadline=None)
def test_the_quick_look_overlooks_nothing(text: str, before: str, escapes: bool) -> None:
    """S1: what it lets pass is no change to the scanner; or no SQL to any server."""
    text = before + text
    if readings_to_scan(text, (escapes,)):
        return
    try:
        list(tokens(text, escapes))
    except Unclear:
        # Unfinished.  One statement is that one, wherever its last constant ends.
        assert ";" not in text
        return
    assert scanned(text, escapes) is None


@given(disguised(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_quick_look_is_not_deceived_by_a_disguise(
    case: tuple[str | None, str], escapes: bool
) -> None:
    """S1: the same of what is valid SQL."""
    _, text = case
    if not readings_to_scan(text, (escapes,)):
        assert scanned(text, escapes) is None


_NUMBERS = range(2000)


@pytest.mark.parametrize(
    "constant",
    [
        "%s",
        "'a temporary; SET \"x\" -- it''s /* on hold */ $5'",
        "'\\d a temporary; LOAD \\s; set'",
        "E'it\\'s\\n; SET \\\\ a /* temporary'",
        "'-- in two'\n\t\n'; SET a'",
    ],
)
def test_a_long_update_is_not_taken_apart(
    constant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2: what bulk_update() sends is seen for what it is without a look at each word."""
    cases = " ".join(f'WHEN ("item"."id" = %s) THEN {constant}' for _ in _NUMBERS)
    text = f'UPDATE "item" SET "name" = (CASE {cases} ELSE NULL END)::varchar(100)'
    monkeypatch.setattr("django_pg_real_pool._session.tokens", None)
    assert changes_session(text) is None
    monkeypatch.undo()
    assert changes_session(text + "; SET a.b = 1") == "SET"
