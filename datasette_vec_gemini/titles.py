"""What a hit is called and shown by: a title for its document, a snippet of its chunk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .domain import Index
from .keys import Key, key_to_json

TITLES = ("title", "name", "headline", "heading", "subject", "label")
SNIPPET_CHARACTERS = 240


def title(index: Index, key: Key, row: Mapping[str, object]) -> str:
    """What to call a document: a column named like a title, else the first of several indexed columns, else its key."""
    by_name = {name.casefold(): name for name in row}
    columns = [by_name[name] for name in TITLES if name in by_name]
    if len(index.columns) > 1:
        columns.append(index.columns[0])
    for column in columns:
        value = row[column]
        if isinstance(value, str | int | float) and str(value).strip():
            return " ".join(str(value).split())[:200]
    return ", ".join(map(str, key_to_json(key)))


def snippet(text: str, words: Sequence[str]) -> str:
    """About 240 characters of a chunk on one line, from a little before its first occurrence of a word."""
    line = " ".join(text.split())
    if len(line) <= SNIPPET_CHARACTERS:
        return line
    lowered = line.lower()
    held = (word for word in words if word in lowered)
    places = [match.start() for word in held if (match := re.search(rf"\b{re.escape(word)}", lowered))]
    start = max(0, min(places, default=0) - SNIPPET_CHARACTERS // 4)
    start = min(start, len(line) - SNIPPET_CHARACTERS)
    if start:
        start = line.find(" ", start) + 1 or start
    piece = line[start : start + SNIPPET_CHARACTERS]
    if start + SNIPPET_CHARACTERS < len(line):
        piece = piece.rpartition(" ")[0] or piece
        piece += " …"
    return f"… {piece}" if start else piece
