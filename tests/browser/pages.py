"""The addresses that these tests visit, and what they read there."""

from playwright.sync_api import Page

SEARCH = "/library/-/vec/stdlib"
ASKED = f"{SEARCH}?q=days+between+two+dates&_facet=module&kind__not=module"
MAP = f"{SEARCH}/map?_color=module"
PAGES = {
    "search": ASKED,
    "everywhere": "/-/vec?q=read+a+table",
    "similar": f"{SEARCH}/similar?key=csv.reader",
    "index": "/library/-/vec-index/letters?column=body&name=another",
    "status": f"{SEARCH}/status",
    "all indexes": "/-/vec/status",
    "map": MAP,
    "hits on the map": f"{MAP}&q=random+number",
}


def titles(page: Page) -> list[str]:
    return page.locator(".vec-hits > li > article > :is(h2, h3)").all_inner_texts()
