"""Searching as people do it: with a pointer, with keys alone, and with scripts switched off."""

import re

import pytest
from pages import ASKED, MAP, SEARCH, titles
from playwright.sync_api import Page, expect

QUESTION = "how many days are there between two dates"


def ask(page: Page, question: str) -> None:
    page.get_by_label("Search stdlib").fill(question)
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("10 hits in")


def modules(page: Page) -> list[str]:
    return page.locator(".vec-hits > li > article > .vec-columns div:has(dt:text-is('module')) dd").all_inner_texts()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_question_is_asked_narrowed_by_a_facet_and_paged(open_page, scripts) -> None:
    page = open_page(SEARCH, java_script_enabled=scripts)
    ask(page, QUESTION)
    best = titles(page)
    assert len(best) == 10
    assert len(set(modules(page))) > 1
    page.get_by_role("link", name="module", exact=True).click()
    facet = page.get_by_role("complementary", name="Facets").get_by_role("listitem").filter(has_text="datetime")
    count = int(facet.inner_text().split()[1])
    facet.get_by_role("link").click()
    assert set(modules(page)) == {"datetime"}
    assert page.get_by_role("link", name="Remove the filter module = datetime").count() == 1
    found = titles(page)
    page.get_by_role("link", name="Next page").click()
    expect(page.get_by_role("status")).to_contain_text(re.compile(r"Hits 11 to \d+ in"))
    following = titles(page)
    assert set(modules(page)) == {"datetime"}
    assert not set(found) & set(following)
    assert len(found) + len(following) <= count
    page.go_back()
    assert titles(page) == found
    page.get_by_role("link", name="Remove the filter module = datetime").click()
    assert titles(page) == best


def test_each_way_to_search_has_its_own_answer_and_address(open_page) -> None:
    page = open_page(SEARCH)
    ask(page, "days between dates")
    for label, mode in [("Exact words", "keyword"), ("By meaning", "semantic"), ("Best match", "hybrid")]:
        page.get_by_label(label).check()
        page.get_by_role("button", name="Search", exact=True).click()
        expect(page.get_by_label(label)).to_be_checked()
        assert f"mode={mode}" in page.url
        assert titles(page)
        assert (page.locator(".vec-snippet mark").count() > 0) == (mode != "semantic")


def test_a_hit_says_why_it_is_there(open_page) -> None:
    page = open_page(ASKED)
    why = page.locator(".vec-why details").first
    expect(why.get_by_role("list")).to_be_hidden()
    why.get_by_text("Why this?").click()
    expect(why.get_by_role("list")).to_contain_text("BM25")


def test_from_a_hit_to_rows_like_it_and_to_the_row(open_page) -> None:
    page = open_page(f"{SEARCH}?q=csv.reader&mode=keyword")
    assert titles(page)[0] == "csv.reader"
    page.get_by_role("link", name="More like").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Similar to csv.reader")
    assert titles(page)[0] == "csv.writer"
    assert "csv.reader" not in titles(page)
    page.get_by_role("link", name="csv.writer", exact=True).click()
    assert page.url.endswith("/library/stdlib/csv~2Ewriter")
    menu = page.locator(".actions-menu-links summary")
    if menu.count():  # Datasette 1.0
        menu.first.click()
    page.locator("section.content a", has_text="Similar rows").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Similar to csv.writer")


def press_until(page: Page, selector: str) -> None:
    """Tab to an element, whose focus is seen."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            break
    else:
        pytest.fail(f"{selector} is not reached by the keyboard")
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 1


def test_the_keyboard_alone_asks_filters_and_opens_a_row(open_page) -> None:
    page = open_page(SEARCH)
    press_until(page, "#vec-q")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("10 hits in")
    press_until(page, "input[name=mode]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("By meaning")).to_be_checked()
    press_until(page, ".vec-suggested a")
    page.keyboard.press("Enter")
    expect(page.get_by_role("complementary", name="Facets")).to_be_visible()
    press_until(page, ".vec-facets li a")
    page.keyboard.press("Enter")
    expect(page.get_by_role("list", name="Filters")).to_be_visible()
    first = titles(page)[0]
    press_until(page, ".vec-why summary")
    page.keyboard.press("Enter")
    expect(page.locator(".vec-why details").first).to_have_attribute("open", "")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(first)


def test_status_map_and_forms_need_no_scripts(open_page) -> None:
    page = open_page(f"{SEARCH}/status", actor="root", java_script_enabled=False)
    assert page.locator("[data-vec=indexed]").inner_text() == page.locator("[data-vec=rows]").inner_text()
    assert page.get_by_role("button", name="Verify").is_visible()
    page.goto(MAP)
    assert page.locator("canvas").count() == 0
    assert page.get_by_role("img", name="Map of").is_visible()
    listed = page.locator(".vec-map-list")
    assert listed.get_by_role("listitem").count() > 10
    page.get_by_label("Colour by").select_option("kind")
    page.get_by_role("button", name="Colour").click()
    assert page.get_by_role("list", name="kind").get_by_role("link", name="class").is_visible()
    title = listed.get_by_role("link").first.inner_text()
    listed.get_by_role("link").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(title)
