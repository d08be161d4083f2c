"""What pages of hits share beyond the answer: addresses, and facets and filters that can be switched on and off."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from datasette.app import Datasette

from ..browsing import Browsed, Facet
from ..domain import Index
from ..keys import Key, key_to_path
from ..store.filters import plain
from .answers import Answer
from .cards import Card, parted, shown, stems
from .sentences import NONE, Spans

Pairs = Sequence[tuple[str, str]]

RESERVED = frozenset({"q", "mode"})
"""The parameters of a search page that are no filters."""


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


def similar_url(datasette: Datasette, database: str, index: Index, path: str) -> str:
    """The address of the rows that are similar to that of a key in Datasette's path form."""
    return index_url(datasette, database, index, [("key", path)], suffix="/similar")


def cards(
    datasette: Datasette,
    database: str,
    index: Index,
    found: Browsed,
    *,
    text: str = "",
    columns: Sequence[str],
    nearest: Spans = NONE,
) -> list[Card]:
    """The hits of a page, with near-duplicates under the best of their kind; `nearest` are places of sentences."""
    asked = stems(text)

    def card(number: int, duplicates: Sequence[Card] = ()) -> Card:
        hit = found.hits[number]
        path = key_to_path(hit.key)  # an empty key has none
        return Card(
            hit=hit,
            strength=found.strengths[number],
            url=row_url(datasette, database, index, hit.key),
            similar_url=similar_url(datasette, database, index, path) if path else None,
            parts=parted(hit, asked, nearest.get(number)),
            columns=[(name, shown(hit.row[name])) for name in columns if hit.row.get(name) is not None],
            duplicates=duplicates,
        )

    folded: dict[Key, list[Card]] = {}
    for number, hit in enumerate(found.hits):
        if original := found.duplicate_of.get(hit.key):
            folded.setdefault(original, []).append(card(number))
    return [
        card(number, folded.get(hit.key, ()))
        for number, hit in enumerate(found.hits)
        if hit.key not in found.duplicate_of
    ]


def is_filter(parameter: str, reserved: frozenset[str] = RESERVED) -> bool:
    """Whether a parameter of a page filters; as in Datasette, one with a leading underscore does if it has two more."""
    return parameter not in reserved and (not parameter.startswith("_") or "__" in parameter)


def facets(
    answer: Answer, pairs: Pairs, url: Callable[[Pairs], str], *, reserved: frozenset[str] = RESERVED
) -> dict[str, dict[str, Any]]:
    """Facets as JSON gives them; `url` makes an address of the parameters."""
    kept = [pair for pair in pairs if pair[0] != "_next"]

    def result(facet: Facet, value: object, count: int) -> dict[str, Any]:
        toggled, selected = None, False
        if not isinstance(value, bytes):
            filters = _filters(facet, value, reserved)
            selected = any(pair in kept for pair in filters)
            without = [pair for pair in kept if pair not in filters]
            toggled = url(without if selected else [*kept, filters[0]])
        shown_value = shown(value) if isinstance(value, bytes) else value
        return {"value": shown_value, "count": count, "toggle_url": toggled, "selected": selected}

    return {
        facet.column: {
            "among": facet.among,
            "results": [result(facet, value, count) for value, count in facet.counts],
            "truncated": facet.is_cut,
        }
        for facet in answer.found.facets
    }


def _filters(facet: Facet, value: object, reserved: frozenset[str]) -> list[tuple[str, str]]:
    """The ways to say that a column has a value, the usual one first."""
    column = facet.column
    if (
        value is not None
        and not facet.is_typed
        and (type(value), value) != (type(plain(str(value))), plain(str(value)))
    ):
        return [(f"{column}__in", json.dumps([value], ensure_ascii=False))]  # text like a number, a number like 1e+20
    if value is None:
        return [(f"{column}__isnull", "1")]
    # The name itself may end like an operator, or be one of the page's own parameters.
    named = [] if "__" in column or not is_filter(column, reserved) else [(column, str(value))]
    return [*named, (f"{column}__exact", str(value))]


def common(
    datasette: Datasette,
    database: str,
    answer: Answer,
    pairs: Pairs,
    *,
    suffix: str = "",
    reserved: frozenset[str] = RESERVED,
    columns: Sequence[str] | None = None,
    nearest: Spans = NONE,
) -> dict[str, Any]:
    """The variables that the pages of hits share, for a request that had the parameters `pairs`."""
    index, query = answer.index, answer.query
    kept = [pair for pair in pairs if pair[0] != "_next"]
    text = query.text if query and not answer.key else ""

    def url(parameters: Pairs, form: str = "") -> str:
        return index_url(datasette, database, index, parameters, suffix=suffix + form)

    def all_of(found: Browsed, nearest: Spans = NONE) -> list[Card]:
        names = index.filter_columns if columns is None else columns
        return cards(datasette, database, index, found, text=text, columns=names, nearest=nearest)

    counted = [value for name, value in kept if name == "_facet"]
    return {
        "database": database,
        "answer": answer,
        "index": index,
        "cards": all_of(answer.found, nearest),
        "nearest": all_of(answer.nearest),
        "facets": facets(answer, pairs, url, reserved=reserved),
        "without_facet": {
            name: url([pair for pair in kept if pair != ("_facet", name)]) for name in dict.fromkeys(counted)
        },
        "suggested": [(name, url([*kept, ("_facet", name)])) for name in index.filter_columns if name not in counted],
        "hidden": [pair for pair in kept if pair[0] in {"_size", "_facet"} or is_filter(pair[0], reserved)],
        "filters": [
            (name, value, url([*kept[:place], *kept[place + 1 :]]))
            for place, (name, value) in enumerate(kept)
            if is_filter(name, reserved)
        ],
        "unfiltered_url": url([pair for pair in kept if not is_filter(pair[0], reserved)]),
        "first": query.offset + 1 if query else 1,
        "next_url": answer.next and url([*kept, ("_next", str(answer.next))]),
        "json_url": url(pairs, ".json"),
        "csv_url": url([*(pair for pair in kept if pair[0] not in {"_size", "_facet"}), ("_size", "100")], ".csv"),
        "search_url": index_url(datasette, database, index),
        "status_url": index_url(datasette, database, index, suffix="/status"),
    }
