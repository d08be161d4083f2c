"""Stored text as a reader may see it: nothing invisible in it, and never taken for words of ours.

Every text that comes from a table passes through `visible`. In a text block each of its lines begins with `> `, which
none of our own does; in structured answers it stands in fields of its own.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping

ANSWER_CHARACTERS = 8_000
"""About 2,000 tokens: what an answer may have unless the caller asks for more."""

FIELDS_CHARACTERS = 4_000
"""What the other columns of one row may take of it."""

_UNSEEN = "▯"
_LOOK_EMPTY = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)}
_LOOK_EMPTY |= {*range(0x180B, 0x1810), *range(0xE0000, 0xE1000)}


class _Visible(dict[int, str]):
    """Code point -> what stands for it, found out once."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if code < 0x20 or code == 0x7F:
            shown = chr(0x2421 if code == 0x7F else 0x2400 + code)
        elif code in _LOOK_EMPTY or unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            shown = _UNSEEN
        else:
            shown = character
        self[code] = shown
        return shown


_VISIBLE = _Visible({ord("\n"): "\n", ord("\t"): "\t"})


def visible(text: str) -> str:
    """The text with a visible character in the place of every control, zero-width, bidirectional or unassigned one.

    Its length stays, so that offsets into the one are offsets into the other. Line feeds and tabs stay too.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.replace("\r\n", " \n").translate(_VISIBLE)


def on_one_line(text: str, most: int) -> str:
    """At most so many visible characters of a text, its white space closed up."""
    line = " ".join(text[: 4 * most].split())
    return visible(line if len(line) <= most else f"{line[: most - 1]}…")


def quoted(text: str) -> str:
    """Stored text for a text block: `> ` before every line, so that none looks like ours."""
    return "\n".join(f"> {line}" for line in text.split("\n"))


def shown_fields(row: Mapping[str, object], *, without: set[str], most: int) -> dict[str, str | int | float]:
    """The other columns of a row, as far as there is room: text cut to so many characters, NULL and "" left out."""
    found: dict[str, str | int | float] = {}
    room = FIELDS_CHARACTERS
    for name, value in row.items():
        if name in without or value is None or value == "":
            continue
        shown = _shown_value(value, most)
        room -= len(name) + len(str(shown))
        if room < 0:
            break
        found[visible(name)] = shown
    return found


def _shown_value(value: object, most: int) -> str | int | float:
    """As JSON has it: a BLOB as its size, numbers that JSON's readers round as text."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and abs(value) < math.inf:
        return value
    return on_one_line(str(value), most)
