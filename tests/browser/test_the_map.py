"""The picture of an index under a pointer and beside its list."""

from urllib.parse import urlsplit

import pytest
from pages import MAP
from playwright.sync_api import Page, expect


def spot(page: Page) -> tuple[float, float]:
    """Where the point lies that the tip names, as `map.js` sets the tip beside it."""
    box = page.locator(".vec-canvas").bounding_box()
    left, top, height = page.locator(".vec-tip").evaluate("tip => [tip.offsetLeft, tip.offsetTop, tip.offsetHeight]")
    below = top + height + 14 < box["height"]
    return box["x"] + left - 12, box["y"] + (top - 14 if below else top + 14 + height)


def test_the_pointer_names_a_point_and_a_click_opens_its_row(open_page) -> None:
    page = open_page(MAP)
    tip = page.locator(".vec-tip")
    expect(page.locator("canvas.vec-pointed")).to_be_visible()
    expect(tip).to_be_hidden()
    link = page.locator(".vec-map-list").get_by_role("link").first
    link.hover()
    expect(tip).to_have_text(link.inner_text())
    x, y = spot(page)
    page.mouse.move(x + 3, y + 2)
    # Of two points in one place the pointer means one, and what it names is what it opens.
    expect(tip).to_contain_text(" · ")
    title = tip.inner_text().split(" · ")[0]
    assert title in page.locator(".vec-map-list").get_by_role("link").all_inner_texts()
    page.mouse.click(x + 3, y + 2)
    page.wait_for_url("**/library/stdlib/*")
    expect(page.get_by_role("heading", level=1)).to_contain_text(title)


def test_nothing_is_named_where_nothing_is(open_page) -> None:
    page = open_page(MAP)
    box = page.locator(".vec-canvas").bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 3)
    expect(page.locator(".vec-tip")).to_be_hidden()
    page.mouse.click(box["x"] + 3, box["y"] + 3)
    assert urlsplit(page.url).path == urlsplit(MAP).path


def test_the_keyboard_meets_the_picture_through_the_list(open_page) -> None:
    page = open_page(MAP)
    expect(page.locator("canvas.vec-pointed")).to_be_visible()
    links = page.locator(".vec-map-list").get_by_role("link")
    links.first.focus()
    page.keyboard.press("Tab")
    title = links.nth(1).inner_text()
    expect(links.nth(1)).to_be_focused()
    expect(page.locator(".vec-tip")).to_have_text(title)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(title)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_points_are_drawn_in_the_colours_of_the_legend(open_page, scheme) -> None:
    page = open_page(MAP, color_scheme=scheme)
    expect(page.locator("canvas.vec-points")).to_be_visible()
    count = page.locator("canvas.vec-points").evaluate(
        """canvas => {
            const shades = new Set();
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            for (let n = 0; n < data.length; n += 4)
                if (data[n + 3] === 255) shades.add(data.slice(n, n + 3).join());
            const pen = document.createElement("canvas").getContext("2d");
            return [...document.querySelectorAll(".vec-map-legend li svg")].filter(icon => {
                pen.fillStyle = getComputedStyle(icon).color;
                pen.fillRect(0, 0, 1, 1);
                return shades.has(pen.getImageData(0, 0, 1, 1).data.slice(0, 3).join());
            }).length;
        }"""
    )
    assert count == page.locator(".vec-map-legend li").count() == 9
