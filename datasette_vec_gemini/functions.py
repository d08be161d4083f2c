"""SQL functions that a connection gets from `connect()`, from Datasette or from sqlite-utils."""

from __future__ import annotations

import json
from typing import cast

from .domain import Mode, Query
from .driver import sqlite3
from .errors import InvalidFilter, InvalidQuery
from .searching import answer, embed
from .store import registry


def register(conn: sqlite3.Connection) -> None:
    """Define `semantic_search(index, query [, k [, mode [, filters_json [, offset]]]])` on the connection.

    It returns the hits as a JSON array for `json_each`, each as `Hit.to_dict` gives it; NULL for a NULL query.
    `filters_json` is an object of `column__op` to value. SQLite drivers hide the message of an error raised in a
    function, so the CLI and the page are the places to see what was wrong with a query.
    """

    # A connection takes no weak reference: its functions keep it alive until it is closed.
    def semantic_search(index: str, text: str | None, *options: object) -> str | None:
        if text is None:
            return None
        k, mode, filters, offset = (*options, *(None,) * 4)[:4]
        query = Query(
            text,
            k=_integer(k, "k", 10),
            mode=cast("Mode", mode or "hybrid"),
            filters=_filters(filters),
            offset=_integer(offset, "offset", 0),
        )
        found = registry.find(conn, index)
        # Not `search`: the statement that calls this reads one state already, and a transaction would end it.
        return json.dumps([hit.to_dict() for hit in answer(conn, found, embed(found, query))], ensure_ascii=False)

    for arguments in range(2, 7):
        conn.create_function("semantic_search", arguments, semantic_search)


def _integer(value: object, name: str, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int):
        raise InvalidQuery(f"{name} is {value!r}; it must be a whole number")
    return value


def _filters(value: object) -> dict[str, object]:
    if value is None:
        return {}
    try:
        filters = json.loads(str(value))
    except json.JSONDecodeError as error:
        raise InvalidFilter(f"the filters are not JSON: {error}") from error
    if not isinstance(filters, dict):
        raise InvalidFilter('the filters are not a JSON object such as {"year__gte": 2000}')
    return filters
