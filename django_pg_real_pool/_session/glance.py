"""A quick look at a text, which recognises most of those that change nothing.

The scanner makes an object of each word, and takes a tenth of a second for what
`bulk_update()` sends.  Here nothing is done for each word: a text is searched for names,
and where that is not enough, its constants and comments are cut out of it.

A reading that is left out certainly changes nothing.  One that is not may do so or not.
"""

from __future__ import annotations

import re

from .scanner import (
    ESCAPED,
    LETTER,
    PARTED_WORD,
    WORD,
    has_odd_placeholder,
    is_spelt_out,
    spelt_out,
)
from .words import FIRST_WORDS, FUNCTIONS, SETTINGS_VIEW, TEMPORARY, TEMPORARY_SCHEMA

#: What may change a session, wherever it stands.
_NAMES = (*FUNCTIONS, TEMPORARY_SCHEMA, SETTINGS_VIEW, "u&'", 'u&"')
_TEMPORARY = re.compile(rf"(?:{'|'.join(TEMPORARY)})(?![{LETTER}])", re.ASCII)

_FIRST = re.compile(rf"\s*({WORD}|\()", re.ASCII)
#: What a statement that changes a session begins with, without and with a HOLD in it.
_BEGINNINGS = (*FIRST_WORDS, "do")
_BEGINNINGS_WITH_HOLD = (*_BEGINNINGS, "declare")

#: An escape that is written without the character it stands for.
_CODED = re.compile(r"\\[xuU0-7]")

#: What may be a comment between two parts of a word.  No name of ours begins with an E.
_COMMENTED = re.compile(r"'(?<=\w')(?<![^\w'][eE]')\s*--", re.ASCII)

# What is not code, by whether a backslash escapes in a plain constant.  A constant with a
# quote in it counts as two here, with nothing between.  What may be no constant, name or
# comment is left in the code, with its quote.
_NO_CODE = {
    escapes: re.compile(
        rf"""
          '(?<![{LETTER}&]'){plain}'
        | '(?<=[^{LETTER}&][eE]'){ESCAPED[1:]}
        | "[^"]*"
        | --[^\r\n]*
        | /\*[^*/]*(?:(?:\*(?!/)|/(?!\*))[^*/]*)*\*/
        """,
        re.VERBOSE | re.DOTALL | re.ASCII,
    )
    for escapes, plain in {False: r"[^']*", True: r"[^'\\]*(?:\\.[^'\\]*)*"}.items()
}
_UNCERTAIN = re.compile(r"""['"$]|/\*|%\((?!\w*\))""", re.ASCII)


def readings_to_scan(sql: str, readings: tuple[bool, ...]) -> tuple[bool, ...]:
    """Return in which of these ways `sql` has to be read by the scanner.

    True is with a backslash that escapes in a plain constant, False is without.
    """
    folded = sql.lower()
    if _has_name(folded) or ("%(" in sql and has_odd_placeholder(sql)):
        return readings
    if not is_spelt_out(sql) and (
        _has_name(_revealed(sql).lower()) or _COMMENTED.search(sql)
    ):
        return readings
    beginnings = _BEGINNINGS_WITH_HOLD if "hold" in folded else _BEGINNINGS
    has_temporary = "temp" in folded and _TEMPORARY.search(folded) is not None
    if ";" not in sql and not has_temporary:
        # However it is taken apart, it is one statement, and that is its first word.
        if sql[:1].isalpha() and not folded.startswith(beginnings):
            return ()
        if (first := _FIRST.match(folded)) is not None:
            return readings if first.group(1) in beginnings else ()
    return tuple(
        escapes for escapes in readings if _may_change(_code_of(sql, escapes), beginnings)
    )


def _has_name(folded: str) -> bool:
    # Most texts have none of these, which is quickest to see like this.
    return (
        "set_config" in folded
        or "advisory" in folded
        or "pg_temp" in folded
        or "pg_settings" in folded
        or "setseed" in folded
        or "set_limit" in folded
        or "dblink" in folded
        or "replication" in folded
        or "backup" in folded
        or "u&" in folded
    ) and any(name in folded for name in _NAMES)


def _revealed(sql: str) -> str:
    """Return `sql` with each name that its constants spell in parts, or in escapes."""
    if _CODED.search(sql):
        return spelt_out(sql)
    return PARTED_WORD.sub("", sql).replace("\\", "")


def _code_of(sql: str, escapes: bool) -> str:
    return " ".join(_NO_CODE[escapes].split(sql)).lower()


def _may_change(code: str, beginnings: tuple[str, ...]) -> bool:
    if _UNCERTAIN.search(code) or ("temp" in code and _TEMPORARY.search(code)):
        return True
    return any(
        first.group(1) in beginnings
        for statement in code.split(";")
        if (first := _FIRST.match(statement)) is not None
    )
