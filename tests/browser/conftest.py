"""A real browser before a real server. Without Playwright or Chromium these tests are skipped."""

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Playwright is a large package, so only nox's session `browser` installs it.
if find_spec("playwright") is None or find_spec("axe_playwright_python") is None:
    collect_ignore_glob = ["*.py"]

HERE = Path(__file__).parent
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package")
def chromium() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium: apt-get install chromium, or name one in the environment variable CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where Datasette serves `library.db`, with a policy against inline scripts and a theme for the dark."""
    from library import build, served

    directory = tmp_path_factory.mktemp("served")
    options = ["--plugins-dir", str(HERE / "plugins"), "--static", f"theme:{HERE / 'theme'}"]
    with served(build(directory / "library.db"), directory, options=options) as url:
        yield url


@pytest.fixture
def open_page(chromium: "Browser", address: str) -> "Iterator[Callable[..., Page]]":
    """Open a window at a path; at the end of the test no script of ours may have failed or been stopped.

    What the policy stops on every page are the inline scripts in the templates of Datasette itself; there is none in
    our part of the pages, and our files are let through.
    """
    from library import signed_in

    errors: list[str] = []
    contexts = []

    def open_at(path: str, *, actor: str | None = None, **options: Any) -> "Page":
        context = chromium.new_context(base_url=address, reduced_motion="reduce", **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        if actor:
            context.add_cookies([signed_in(address, actor)])
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        response = page.goto(path)
        assert response.status == 200
        assert response.headers["content-security-policy"] == "script-src 'self'"
        assert page.locator("section.content script:not([src])").count() == 0
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert [error for error in errors if not error.startswith("Executing inline script violates")] == []
