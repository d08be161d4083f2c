"""What tests read from a page, and who they are when they ask for it."""

import html
import re

from datasette.app import Datasette


def hrefs(page: str) -> list[str]:
    """The links of the hits, near-duplicates after the hit that they are folded under."""
    return [html.unescape(href) for href in re.findall(r'<(?:h2|li) dir="auto"><a href="([^"]*)">', page)]


def titles(page: str) -> list[str]:
    return [html.unescape(title) for title in re.findall(r'<(?:h2|li) dir="auto">(?:<a [^>]*>)?([^<]*)<', page)]


def plain(hits: list[dict]) -> list[dict]:
    """Hits as every door has them: the page's JSON adds which are near-duplicates."""
    return [{name: value for name, value in hit.items() if name != "duplicate_of"} for hit in hits]


def address(page: str, text: str) -> str | None:
    """Where the link with this text leads."""
    found = re.search(rf'<a [^>]*href="([^"]*)"[^>]*>{re.escape(text)}</a>', page)
    return html.unescape(found[1]) if found else None


def cookies(datasette, actor: str = "root") -> dict[str, str]:
    return {"ds_actor": datasette.sign({"a": {"id": actor}}, "actor")}


def rules(block: dict) -> dict[str, dict]:
    """The argument of Datasette for rules that 1.0 does not read from metadata."""
    return {"config" if hasattr(Datasette, "allowed") else "metadata": block}
