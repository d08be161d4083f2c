"""What is sent by POST: from our own pages only, by those who may."""

from __future__ import annotations

import math
from urllib.parse import parse_qsl

from datasette import Forbidden, Request

from ..errors import InvalidSetting, UsageError, VecError, shown
from . import visitors

Pairs = list[tuple[str, str]]
MAX_FIELDS = 5_000


async def read(request: Request) -> Pairs:
    """The fields of a form. Raises Forbidden where another web page made the browser send it.

    Datasette has looked at that before, but 0.65 only where there are cookies.
    """
    if visitors.is_foreign():
        raise Forbidden("This form was not sent by a page of this site")
    body = (await request.post_body()).decode("utf-8", "replace")
    try:
        return parse_qsl(body, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise Forbidden("The form has too many fields") from None


def field(pairs: Pairs, name: str) -> str:
    """The value of a field, without white space around it; empty where it was not sent."""
    return next((value for key, value in pairs if key == name), "").strip()


def budget(pairs: Pairs) -> float | None:
    """The dollars that `max_usd` agrees to; None where it is empty. Raises InvalidSetting."""
    text = field(pairs, "max_usd").removeprefix("$").strip()
    if not text:
        return None
    try:
        usd = float(text)
    except ValueError:
        usd = math.nan
    if not 0 < usd < math.inf:
        raise InvalidSetting(f"the budget is {shown(text)}; it must be dollars, such as 0.50")
    return usd


def status_of(error: VecError) -> int:
    """The HTTP status of what came of a form."""
    return 400 if isinstance(error, UsageError) else 503
