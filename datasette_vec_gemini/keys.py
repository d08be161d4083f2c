"""A key as a string, as people type it and as URLs carry it: Datasette's path form, tilde-encoded and comma-joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from urllib.parse import quote_plus, unquote_plus

Key = tuple[str | int | float | bytes, ...]


def key_to_path(key: Sequence[object]) -> str:
    """`(1, "a/b")` -> `"1,a~2Fb"`; the encoding of datasette.utils.tilde_encode, kept equal by a test.

    A BLOB is spelled as its hexadecimal digits.
    """
    parts = (part.hex() if isinstance(part, bytes) else str(part) for part in key)
    return ",".join(
        quote_plus(part, safe="").replace(".", "%2E").replace("~", "%7E").replace("%", "~") for part in parts
    )


def key_from_path(path: str) -> tuple[str, ...]:
    """The parts of a key as text; SQLite's column affinity turns them into numbers where the key holds numbers."""
    return tuple(unquote_plus(part.replace("%", "%25").replace("~", "%")) for part in path.split(","))


def key_to_json(key: Sequence[object]) -> list[object]:
    """The key as a JSON array; a BLOB as its hexadecimal digits, infinity as text."""
    return [
        part.hex() if isinstance(part, bytes) else str(part) if part in {math.inf, -math.inf} else part for part in key
    ]
