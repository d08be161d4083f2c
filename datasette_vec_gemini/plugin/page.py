"""What the page's template needs beyond the answer: addresses, filters that can be taken away, marked words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any
from urllib.parse import urlencode

from datasette.app import Datasette

from ..domain import Hit, Index
from ..keys import Key, key_to_path
from ..store.keyword import terms
from .answers import Answer

Pairs = Sequence[tuple[str, str]]

_WORD = re.compile(r"([^\W_]+)")
_TELLING = re.compile(r"[^\W_]{3}|[^\x00-\x7f]|\d")
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|e|ly)$")


def index_url(datasette: Datasette, database: str, index: Index, pairs: Pairs = (), *, suffix: str = "") -> str:
    """The address of an index's page, or with the suffix `.json` of its twin, with these parameters."""
    path = f"{datasette.urls.database(database)}/-/vec/{index.name}{suffix}"
    return f"{path}?{urlencode(pairs)}" if pairs else path


def row_url(datasette: Datasette, database: str, index: Index, key: Key) -> str | None:
    """The address of a row's page; None for a view, and for keys that Datasette's addresses cannot say."""
    path = key_to_path(key)
    # Where a column is called rowid, Datasette would look the number up in that.
    is_ambiguous = index.has_rowid_key and index.key[0].name != "rowid"
    if index.is_view or is_ambiguous or not path or any(isinstance(part, bytes) for part in key):
        return None
    url: str = datasette.urls.row(database, index.table, path)
    return url


def context(datasette: Datasette, database: str, answer: Answer, pairs: Pairs) -> dict[str, Any]:
    """The variables of `vec_search.html` for a request that had the parameters `pairs`."""
    index = answer.index
    kept = [pair for pair in pairs if pair[0] != "_next"]
    query = answer.query
    return {
        "database": database,
        "answer": answer,
        "index": index,
        "text": next((value for name, value in pairs if name == "q"), ""),
        "action": index_url(datasette, database, index),
        "json_url": index_url(datasette, database, index, pairs, suffix=".json"),
        "status_url": index_url(datasette, database, index, suffix="/status"),
        "hidden": [pair for pair in kept if pair[0] == "_size" or is_filter(pair[0])],
        "filters": [
            (name, value, index_url(datasette, database, index, [*kept[:place], *kept[place + 1 :]]))
            for place, (name, value) in enumerate(kept)
            if is_filter(name)
        ],
        "hits": [
            (hit, row_url(datasette, database, index, hit.key), marked(hit, query.text if query else ""))
            for hit in answer.hits
        ],
        "first": query.offset + 1 if query else 1,
        "next_url": answer.next and index_url(datasette, database, index, [*kept, ("_next", str(answer.next))]),
    }


def is_filter(parameter: str) -> bool:
    """Whether a parameter of the page filters; Datasette keeps those with a leading underscore for itself."""
    return parameter not in {"q", "mode"} and not parameter.startswith("_")


def marked(hit: Hit, text: str) -> list[tuple[str, bool]]:
    """The snippet in pieces, each with whether the keyword side looked for it.

    Words like "a" and "in" are marked only where nothing else was asked for.
    """
    if hit.why.keyword is None:
        return [(hit.snippet, False)]
    words = [word for term in terms(text) for word in _WORD.findall(term)]
    stems = {_stem(word) for word in filter(_TELLING.search, words)} or {_stem(word) for word in words}
    flagged = [(piece, _stem(piece) in stems) for piece in _WORD.split(hit.snippet) if piece]
    return [("".join(piece for piece, _ in run), is_match) for is_match, run in groupby(flagged, key=itemgetter(1))]


def _stem(word: str) -> str:
    """About what FTS5 compares: no case, no accents, no English ending; good enough for marking."""
    letters = (c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))
    return _ENDING.sub("", "".join(letters))
