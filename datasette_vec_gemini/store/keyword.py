"""Keyword search: free text to an FTS5 expression, and the best documents by BM25."""

from __future__ import annotations

import re
import unicodedata

from ..domain import Index
from ..driver import sqlite3
from ..schema import key_names, listed, quote_identifier
from .filters import Condition
from .nearest import Candidate, best_by_document

MAX_TERMS = 200
"""More different terms than this add nothing that could be told apart."""

_TERM = re.compile(r'"([^"]*)"|(\w+)')


def terms(text: str) -> list[str]:
    """The words of a free text and its "quoted phrases", each once, in order."""
    # Composed, because a combining accent is no word character and would tear its word apart.
    composed = unicodedata.normalize("NFC", text.replace("\0", " ")).lower()
    found = (match[1] if match[1] is not None else match[2] for match in _TERM.finditer(composed))
    return list(dict.fromkeys(term for term in found if re.search(r"\w", term)))[:MAX_TERMS]


def expression(text: str) -> str:
    """An FTS5 expression that matches any of the terms; no character of the text has a meaning in it. May be empty."""
    return " OR ".join(f'"{term}"' for term in terms(text))


def keyword(
    conn: sqlite3.Connection, index: Index, text: str, *, depth: int, condition: Condition | None = None
) -> list[Candidate]:
    """The `depth` documents that match the text's terms best, best first."""
    match = expression(text)
    if not match:
        return []
    fts, chunks = quote_identifier(index.object("fts")), quote_identifier(index.object("chunks"))
    # The unary plus keeps the filter from driving the join: FTS5 would be asked once for each row that passes it.
    where = f"and +c.id in (select id from {chunks} where {condition.sql})" if condition else ""
    cursor = conn.execute(
        f"""
        select c.id, -bm25({fts}), {listed(key_names(index), of="c")}
        from {fts} join {chunks} as c on c.id = {fts}.rowid
        where {fts} match ? {where} order by bm25({fts}), c.id
        """,
        [match, *(condition.values if condition else ())],
    )
    return best_by_document(((id_, tuple(key), score) for id_, score, *key in cursor), depth)
