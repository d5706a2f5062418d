"""Texts from files and other programs, made safe to show: no control characters, one line, of bounded length."""

from __future__ import annotations

import re

# Control characters (C0, C1), line and paragraph separators, marks that reverse the direction, and lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MOST = 2000


def printable(text: str, *, keep: str = "") -> str:
    """Returns a text with every character that a terminal acts on replaced by its escape in Python.

    Args:
        text: The text.
        keep: Characters to keep, such as line ends.
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def one_line(text: str, most: int = _MOST) -> str:
    """Returns a text on one printable line of at most ``most`` characters."""
    line = printable(" ".join(text[: 2 * most].splitlines()))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def quoted(text: object, most: int = 60) -> str:
    """Returns a name or a value as messages show it: in quotes, printable and short."""
    return f"'{one_line(str(text), most)}'"
