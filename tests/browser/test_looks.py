"""What everybody must be able to read: axe-core's rules, a narrow window, and the dark."""

import json
from itertools import product

import pytest
from axe_playwright_python.sync_playwright import Axe
from pages import PAGES
from playwright.sync_api import Page

# Our part of a page. Rules about whole pages are the host's affair: axe leaves them out where a part is examined. With
# the whole page it finds in Datasette's own templates: `html-has-lang` (0.65), `landmark-one-main` and `region` (both).
OURS = {"include": [["section.content"]]}
SCHEMES = {"light": ("light", True), "dark": ("dark", True), "dark, on a site without a dark theme": ("dark", False)}


def violations(page: Page) -> list[tuple[str, str]]:
    found = Axe().run(page, context=OURS).response["violations"]
    return [(rule["id"], node["html"]) for rule in found for node in rule["nodes"]]


def opened(open_page, path: str, scheme: str) -> Page:
    color_scheme, themed = SCHEMES[scheme]
    page = open_page("/-/vec", actor="root", color_scheme=color_scheme)
    if not themed:
        page.route("**/theme/dark.css", lambda route: route.fulfill(body="", content_type="text/css"))
    page.goto(path, wait_until="networkidle")
    return page


@pytest.mark.parametrize(
    ("name", "scheme"), [*product(PAGES, ["light", "dark"]), ("search", "dark, on a site without a dark theme")]
)
def test_axe_finds_nothing_in_our_part_of_a_page(open_page, name, scheme) -> None:
    page = opened(open_page, PAGES[name], scheme)
    for details in page.locator("section.content details:not([open]) > summary").element_handles()[:3]:
        details.click()
    page.mouse.move(0, 0)  # what the pointer is over, the host makes paler
    assert violations(page) == []


def test_axe_would_find_something(open_page) -> None:
    """The rules do run under the policy against inline scripts."""
    page = open_page(PAGES["search"])
    page.locator("#vec-q").evaluate("field => field.labels[0].remove()")
    page.locator(".vec-status").first.evaluate("line => line.style.color = '#ccc'")
    assert {rule for rule, _ in violations(page)} == {"label", "color-contrast"}


def test_the_dark_theme_of_a_site_is_followed(open_page) -> None:
    colors = "element => [getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor]"
    page = opened(open_page, PAGES["search"], "dark")
    assert page.locator(".vec-snippet").first.evaluate(colors) == ["rgb(232, 234, 237)", "rgb(20, 24, 31)"]


# A window of 1280 pixels at a zoom of 400 % is 320 CSS pixels wide.
@pytest.mark.parametrize(
    "window",
    [
        {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2},
        {"viewport": {"width": 320, "height": 256}, "device_scale_factor": 4},
    ],
    ids=["phone", "zoom"],
)
@pytest.mark.parametrize("name", PAGES)
def test_a_narrow_window_scrolls_one_way_and_cuts_nothing(open_page, name, window) -> None:
    page = open_page(PAGES[name], actor="root", **window)
    page.wait_for_load_state("networkidle")
    wide, outside = page.evaluate(
        """() => [
            document.documentElement.scrollWidth,
            [...document.querySelectorAll("section.content *")]
                .filter(e => !e.closest(".vec-wide, pre, .vec-canvas, svg") && e.getBoundingClientRect().right > 321)
                .map(e => e.outerHTML.slice(0, 80)),
        ]"""
    )
    assert (wide, outside) == (320, []), json.dumps(outside)
