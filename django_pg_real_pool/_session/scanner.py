"""Takes SQL text apart as PostgreSQL's own scanner does, or says that it can't."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

# As in the server's own scanner: a space is one of ASCII's; everything beyond ASCII is
# a letter; the tag of a dollar quote has a case, and a number ends where its digits do.
_TOKEN = re.compile(
    r"""
      (?P<space>\s+ | --[^\r\n]*)
    | (?P<comment>/\*)
    | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<unicode>[uU]&["'])
    | (?P<string>[bBxXnN]?'(?:[^']|'')*')
    | (?P<name>"(?:[^"]|"")*")
    | (?P<dollar>
        \$(?P<tag>[A-Za-z_\x80-\U0010ffff][\w\x80-\U0010ffff]*)?\$
        .*?
        \$(?(tag)(?P=tag))\$)
    | (?P<word>[A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*)
    | (?P<number>\d+)
    | (?P<placeholder>%\((?=[^)]*(?:['"$]|--|/\*)))
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_COMMENT_MARK = re.compile(r"/\*|\*/")


class Token(NamedTuple):
    """A piece of a statement: its kind in `_TOKEN`, and its text, folded if a word."""

    kind: str
    text: str


class Unclear(Exception):
    """The text can't be taken apart with certainty."""


def tokens(sql: str) -> Iterator[Token]:
    """Yield what is neither a space nor a comment.  Raises Unclear."""
    position, end = 0, len(sql)
    while position < end:
        match = _TOKEN.match(sql, position)
        assert match is not None  # the last alternative matches any character
        kind, text = str(match.lastgroup), match.group()
        position = match.end()
        if kind == "comment":
            position = _end_of_comment(sql, position)
        elif kind == "word":
            yield Token(kind, text.lower())
        elif kind == "name":
            yield Token(kind, text[1:-1].replace('""', '"'))
        elif (
            kind in ("unicode", "placeholder")  # the latter's name looks like a quote
            or (kind == "string" and "\\" in text)
            or text in ("'", '"')
        ):
            raise Unclear
        elif kind != "space":
            yield Token(kind, text)


def _end_of_comment(sql: str, position: int) -> int:
    depth = 1  # PostgreSQL's comments nest
    while depth:
        match = _COMMENT_MARK.search(sql, position)
        if match is None:
            raise Unclear
        depth += 1 if match.group() == "/*" else -1
        position = match.end()
    return position
