"""The SQL that finds what a page shows, to be run and changed on Datasette's SQL page."""

from __future__ import annotations

import json

from ..domain import Index, KeyColumn, Query
from ..schema import in_main, quote_identifier


def statement(index: Index, query: Query) -> str:
    """A statement that runs as it stands: the hits of a query with their rows, best first."""
    filters = [_quoted(json.dumps(dict(query.filters), ensure_ascii=False))] * bool(query.filters or query.offset)
    options = [str(query.k), _quoted(query.mode), *filters, *[str(query.offset)] * bool(query.offset)]
    keys = " and ".join(
        f"{_as_in_json(column)} = json_extract(hit.value, '$.key[{n}]')" for n, column in enumerate(index.key)
    )
    return f"""
select
  json_extract(hit.value, '$.score') as score,
  json_extract(hit.value, '$.snippet') as snippet,
  t.*
from json_each(
  semantic_search({", ".join([_quoted(index.name), _quoted(query.text), *options])})
) as hit
join {in_main(index.table)} as t on {keys}
order by hit.key
""".strip()


def _as_in_json(column: KeyColumn) -> str:
    name = f"t.{quote_identifier(column.name)}"
    if column.affinity != "BLOB":
        return name
    return f"case typeof({name}) when 'blob' then lower(hex({name})) else {name} end"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
