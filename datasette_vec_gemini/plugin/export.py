"""An answer as CSV, by Datasette's own conventions for it."""

from __future__ import annotations

import csv
import io

from datasette import Request, Response
from datasette.app import Datasette

from ..keys import key_to_path
from .answers import Answer
from .page import row_url


def csv_response(datasette: Datasette, request: Request, database: str, answer: Answer) -> Response:
    """The hits: key, `_score`, `_title` and `_snippet`, then the other columns of the row.

    Ours have underscores because a row often has a title of its own. Plain text unless `_dl` asks for a download, no
    header line with `_header=off`; a BLOB is the address where it can be had.
    """
    index = answer.index
    keys = [column.name for column in index.key]
    others = [name for name in answer.hits[0].row if name not in keys] if answer.hits else []
    text = io.StringIO()
    writer = csv.writer(text)
    if request.args.get("_header") != "off":
        writer.writerow([*keys, "_score", "_title", "_snippet", *others])

    def cell(value: object, name: str, url: str | None) -> object:
        if not isinstance(value, bytes):
            return value
        if url is None:
            return f"<{len(value)} bytes>"
        blob = datasette.urls.row_blob(database, index.table, url, name)
        return datasette.absolute_url(request, blob)

    for hit in answer.hits:
        path = key_to_path(hit.key) if row_url(datasette, database, index, hit.key) else None
        own = [part.hex() if isinstance(part, bytes) else part for part in hit.key]
        row = [cell(hit.row[name], name, path) for name in others]
        writer.writerow([*own, hit.score, hit.title, hit.snippet, *row])
    if request.args.get("_dl"):
        headers = {"content-disposition": f'attachment; filename="{index.name}.csv"'}
        return Response(text.getvalue(), headers=headers, content_type="text/csv; charset=utf-8")
    return Response(text.getvalue(), content_type="text/plain; charset=utf-8")
