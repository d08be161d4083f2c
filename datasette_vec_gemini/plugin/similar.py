"""The rows similar to one row: their page and its twins."""

from __future__ import annotations

from urllib.parse import parse_qsl

from datasette import Request, Response
from datasette.app import Datasette

from ..domain import Query
from ..errors import InvalidQuery, VecError
from . import page
from .answers import Answer
from .finding import find_similar
from .views import read_filters, read_integer, read_settings, respond, status_of, visible_index

ROUTE = r"/(?P<database>[^/.]+)/-/vec/(?P<index>[^/.]+)/similar(\.(?P<format>json|csv))?$"
RESERVED = frozenset({"key"})


async def similar_page(datasette: Datasette, request: Request) -> Response:
    """Answer `?key=…&_size=…&_next=…&_facet=…`, the key in Datasette's path form; other parameters are filters.

    It costs nothing: the vectors are there already.
    """
    db, index = await visible_index(datasette, request)
    pairs = parse_qsl(request.query_string, keep_blank_values=True)
    settings, error, status = read_settings(datasette, db.name, index.table), "", 200
    answer = Answer(index=index, mode="semantic")
    path = request.args.get("key") or ""
    try:
        if not path:
            raise InvalidQuery("key is missing: write ?key= and the key of a row as its address has it")
        window = Query(
            "similar",
            k=read_integer(request, "_size", settings.page_size, least=1),
            mode="semantic",
            filters=read_filters(pairs, RESERVED),
            offset=read_integer(request, "_next", 0),
        )
        facets = request.args.getlist("_facet")
        answer = await find_similar(datasette, db, index, path, window, facets=facets)
    except VecError as raised:
        error, status = str(raised), status_of(raised)
    context = page.common(
        datasette, db.name, answer, pairs, suffix="/similar", reserved=RESERVED, columns=settings.columns_shown
    )
    context |= {"row_url": answer.key and page.row_url(datasette, db.name, index, answer.key), "path": path}
    return await respond(datasette, request, "vec_similar.html", context, error=error, status=status)
