"""Takes the README's pictures, of a part of the demonstration's rows: `python screenshots.py DIRECTORY`."""

import os
import sys
import tempfile
from pathlib import Path

from library import build, served, signed_in
from playwright.sync_api import sync_playwright

PICTURES = {
    "search": "/library/-/vec/stdlib?q=how+many+days+are+there+between+two+dates&_facet=module",
    "map": "/library/-/vec/stdlib/map?q=wait+until+several+threads+have+reached+the+same+point&_color=kind",
    "status": "/library/-/vec/stdlib/status",
}
MOST = 150 * 1024  # bytes; a README is read on slow lines too


def take(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        file = build(Path(place, "library.db"))
        with served(file, Path(place)) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=["--no-sandbox"])
            page = browser.new_page(base_url=address, viewport={"width": 1000, "height": 760})
            page.context.add_cookies([signed_in(address)])
            page.goto(PICTURES["search"])  # loads the model
            for name, path in PICTURES.items():
                page.goto(path)
                if name == "status":
                    page.get_by_role("button", name="Verify").click()
                    page.get_by_text("all checks hold").wait_for(timeout=120_000)
                page.wait_for_load_state("networkidle")
                picture = directory / f"{name}.png"
                page.screenshot(path=picture)
                size = picture.stat().st_size
                if size > MOST:
                    sys.exit(f"{picture} has {size:,} bytes, more than {MOST:,}")


if __name__ == "__main__":
    take(Path(sys.argv[1]))
