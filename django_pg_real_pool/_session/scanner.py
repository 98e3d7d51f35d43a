"""Takes SQL text apart as PostgreSQL's own scanner does, or says that it can't."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# As in the server's own scanner: a space is one of ASCII's; everything beyond ASCII is
# a letter; the tag of a dollar quote has a case, and a number ends where its digits do.
#: What a word may go on with.
LETTER = r"\w$\x80-\U0010ffff"
WORD = rf"[A-Za-z_\x80-\U0010ffff][{LETTER}]*"
# A quote within a constant is doubled, or has the end of a line between: then it ends
# one part of the constant and begins the next.  Each part of these patterns can match
# in one way only, or a long text would take for ever.
_LINE = r"[\ \t\f\v]*(?:--[^\r\n]*)?[\r\n]\s*(?:--[^\r\n]*[\r\n]\s*)*"
_GOES_ON = rf"'(?:{_LINE})?'"
_END = rf"'(?!(?:{_LINE})?')"
ESCAPED = rf"'[^'\\]*(?:(?:\\.|{_GOES_ON})[^'\\]*)*{_END}"
#: A plain constant, by whether a backslash escapes: `standard_conforming_strings` off.
PLAIN = {False: rf"'[^']*(?:{_GOES_ON}[^']*)*{_END}", True: ESCAPED}
NAME = r'"[^"]*(?:""[^"]*)*"(?!")'
_TAG = r"[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*"
_FLAGS = re.VERBOSE | re.DOTALL | re.ASCII

_TOKEN = {
    escapes: re.compile(
        rf"""
          (?P<space>\s+ | --[^\r\n]*)
        | (?P<comment>/\*)
        | (?P<escaped>[eE]{ESCAPED})
        | (?P<unicode>[uU]&["'])
        | (?P<bits>[bBxX]'[^']*(?:'{_LINE}'[^']*)*')
        | (?P<string>[nN]?{plain})
        | (?P<name>{NAME})
        | (?P<dollar>\$(?P<tag>{_TAG})?\$.*?\$(?(tag)(?P=tag))\$)
        | (?P<word>{WORD})
        | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
        | (?P<placeholder>%\((?=[^)]*(?:['"$]|--|/\*)))
        | (?P<unfinished>['"] | \$(?:{_TAG})?\$)
        | (?P<other>.)
        """,
        _FLAGS,
    )
    for escapes, plain in PLAIN.items()
}
_COMMENT_MARK = re.compile(r"/\*|\*/")
#: A placeholder with a name that looks like a quote, even if it begins within a quote.
_ODD_PLACEHOLDER = re.compile(r"""%\((?=[^)]*?(?:['"$]|--|/\*))[^)]*\)[a-z]""")

_IN_PLAIN = re.compile(rf"'({_LINE})?'", re.ASCII)
_ESCAPE = r"""
      \\(?: x(?P<hex>[0-9A-Fa-f]{1,2}) | (?P<octal>[0-7]{1,3})
          | u(?P<short>[0-9A-Fa-f]{4}) | U(?P<long>[0-9A-Fa-f]{8}) | (?P<itself>.) )
"""
_IN_ESCAPED = re.compile(rf"'(?P<line>{_LINE})?' | {_ESCAPE}", _FLAGS)
#: Within a word that a constant has in two parts.  With a comment there, it takes
#: `tokens()` to tell it from a constant that begins with "--".
PARTED_WORD = re.compile(r"'(?<=\w')[\ \t\f\v]*(?P<line>[\r\n])\s*'", re.ASCII)
_IN_A_WORD = re.compile(rf"{PARTED_WORD.pattern} | {_ESCAPE}", _FLAGS)
#: `\v` is not here: only since PostgreSQL 16 it is no plain "v".
_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Token(NamedTuple):
    """A piece of a statement: its kind in `_TOKEN`, and its text.

    That is folded if it is a word, and without its quotes if it has some.
    """

    kind: str
    text: str


class Unclear(Exception):
    """The text can't be taken apart with certainty."""


def tokens(sql: str, escapes: bool = False) -> Iterator[Token]:
    """Yield what is neither a space nor a comment.  Raises Unclear.

    `escapes` is whether a backslash escapes in a plain constant.
    """
    if "%(" in sql and has_odd_placeholder(sql):
        raise Unclear
    match_token = _TOKEN[escapes].match
    position, end = 0, len(sql)
    while position < end:
        match = match_token(sql, position)
        assert match is not None  # the last alternative matches any character
        kind, text = str(match.lastgroup), match.group()
        position = match.end()
        if kind == "space":
            continue
        if kind == "word":
            yield Token(kind, text.lower())
        elif kind in ("other", "number", "bits"):
            yield Token(kind, text)
        elif kind == "name":
            yield Token(kind, text[1:-1].replace('""', '"'))
        elif kind in ("string", "escaped"):
            inside = text[text.index("'") + 1 : -1]
            yield Token(kind, _value(inside, escapes or kind == "escaped"))
        elif kind == "dollar":
            quote = text.index("$", 1) + 1
            yield Token(kind, text[quote:-quote])
        elif kind == "comment":
            position = _end_of_comment(sql, position)
        else:
            raise Unclear


def has_odd_placeholder(sql: str) -> bool:
    return _ODD_PLACEHOLDER.search(sql) is not None


def is_spelt_out(sql: str) -> bool:
    """Return whether no constant in `sql` can have another value than its text."""
    return "'" not in sql or not ("\\" in sql or "\n" in sql or "\r" in sql)


def spelt_out(sql: str) -> str:
    """Return `sql` with each part of a word, and each escape, as what it means.

    It need not be taken apart for that: what this makes of anything else is no SQL, but
    has each word that a constant in `sql` has, whether a backslash escapes or not, if
    no comment is between its parts.
    """
    return _meanings(_IN_A_WORD, sql)


def _value(inside: str, escapes: bool) -> str:
    if "\\" not in inside or not escapes:
        return _IN_PLAIN.sub(_quote, inside) if "'" in inside else inside
    return _meanings(_IN_ESCAPED, inside)


def _meanings(pattern: re.Pattern[str], text: str) -> str:
    value = pattern.sub(_meaning, text)
    if "\\v" in text:
        value += "\n" + pattern.sub(_meaning, text.replace("\\v", " "))
    return value


def _quote(match: re.Match[str]) -> str:
    return "" if match.group(1) else "'"


def _meaning(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind is None:
        return "'"
    if kind == "line":
        return ""
    text = match.group(kind)
    if kind == "itself":
        return _CONTROLS.get(text, text)
    code = int(text, 8 if kind == "octal" else 16)
    return chr(code & 0xFF if kind == "octal" else min(code, 0x10FFFF))


def _end_of_comment(sql: str, position: int) -> int:
    depth = 1  # PostgreSQL's comments nest
    while depth:
        match = _COMMENT_MARK.search(sql, position)
        if match is None:
            raise Unclear
        depth += 1 if match.group() == "/*" else -1
        position = match.end()
    return position
