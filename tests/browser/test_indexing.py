"""A table is indexed with the forms alone, while its page tells how far it is."""

import re

import pytest
from playwright.sync_api import Page, expect

LONG = 120_000  # milliseconds; the model shares the machine with the other tests


def number(page: Page, name: str) -> int:
    return int(page.locator(f"[data-vec='{name}']").first.inner_text().replace(",", ""))


@pytest.mark.parametrize(("scripts", "name"), [(True, "notes"), (False, "plain_notes")])
def test_a_table_is_estimated_indexed_to_the_end_and_searched(open_page, scripts, name) -> None:
    page = open_page("/library/-/vec-index", actor="root", java_script_enabled=scripts)
    page.get_by_role("link", name="notes", exact=True).first.click()
    page.locator("input[name=column][value=title]").check()
    page.get_by_text("Advanced").click()
    page.get_by_label("Name of the index").fill(name)
    page.get_by_role("button", name="Estimate").click()
    estimate = page.get_by_role("region", name="What it takes")
    expect(estimate).to_contain_text("60 of 60")
    expect(estimate).to_contain_text("nothing: the model runs on this machine")
    page.get_by_role("button", name="Create and start").click()
    page.wait_for_url(f"**/library/-/vec/{name}/status")
    if not scripts:
        for _ in range(100):
            if page.locator("[data-vec=state]").first.inner_text() == "finished":
                break
            page.wait_for_timeout(500)
            page.get_by_role("link", name="Reload").click()
    expect(page.locator("[data-vec=indexed]")).to_have_text("60", timeout=LONG)
    expect(page.locator(".vec-job [data-vec=state]").first).to_have_text("finished", timeout=LONG)
    assert [number(page, part) for part in ("rows", "pending", "failed", "empty")] == [60, 0, 0, 0]
    page.get_by_role("link", name="Search notes").click()
    page.get_by_label("Search notes").fill("arrays of numbers")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator(".vec-hits mark").first).to_be_visible()


def test_a_running_job_moves_is_paused_resumed_and_ends(open_page) -> None:
    page = open_page("/library/-/vec-index/letters?column=body", actor="root")
    page.get_by_role("button", name="Create and start").click()
    page.wait_for_url("**/library/-/vec/letters/status")
    expect(page.locator("[data-vec=state]").first).to_have_text("running", timeout=LONG)
    page.evaluate("window.seen = 'the same document'")
    bar = page.get_by_role("progressbar", name="Sync of letters")
    expect(bar).to_be_visible()
    expect(page.locator("[data-vec=stage]").first).to_have_text("embedding chunks", timeout=LONG)
    figures = page.locator("[data-vec=figures]")
    expect(figures).to_have_text(re.compile(r"^[1-9][\d,]* of [1-9][\d,]*"), timeout=LONG)
    assert page.evaluate("window.seen") == "the same document"  # told by the script, not by loading anew
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible(timeout=LONG)
    expect(page.locator("[data-vec=state]").first).to_have_text("paused")
    paused = number(page, "indexed")
    total = number(page, "rows")
    assert paused < total
    page.wait_for_timeout(1500)
    page.reload()
    assert number(page, "indexed") == paused
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("[data-vec=state]").first).to_have_text("finished", timeout=LONG)
    assert [number(page, part) for part in ("indexed", "pending", "failed")] == [total, 0, 0]


@pytest.mark.parametrize(("scripts", "name"), [(True, "passing"), (False, "plain_passing")])
def test_an_index_is_verified_made_anew_and_dropped_by_its_name(open_page, scripts, name) -> None:
    path = f"/library/-/vec-index/notes?column=title&embedder=hashing&name={name}"
    page = open_page(path, actor="root", java_script_enabled=scripts)
    page.get_by_role("button", name="Create and start").click()
    for button, told in [("Verify", "all checks hold"), ("Rebuild", "were made anew")]:
        for _ in range(100):
            if page.get_by_role("button", name=button).count():
                break
            page.wait_for_timeout(300)
            page.get_by_role("link", name="Reload").click()
        page.get_by_role("button", name=button).click()
        for _ in range(100):
            if page.get_by_text(told).count():
                break
            page.wait_for_timeout(300)
            page.get_by_role("link", name="Reload").click()
        expect(page.get_by_text(told)).to_be_visible()
    page.get_by_text("Drop this index").click()
    page.get_by_label(f"To confirm, type its name, {name}").fill(name)
    page.get_by_role("button", name="Drop the index").click()
    expect(page.get_by_text(f"The index {name} was dropped; table notes is as it was")).to_be_visible(timeout=LONG)
    page.goto("/-/vec")
    expect(page.get_by_role("link", name=f"library / {name}", exact=True)).to_have_count(0)
