"""Makes the pictures of the page that the README shows: python tools/screenshots.py FOLDER

Starts a server with the default forecaster, shows a pair and the example file, and reduces the pictures to few colours.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browsers import opened  # noqa: E402
from servers import serving  # noqa: E402

COLOURS = 96
MOST_BYTES = 150_000


def save(page: Page, path: Path) -> None:
    """What the window shows, as a small PNG."""
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path}: {path.stat().st_size} bytes; at most {MOST_BYTES}")
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with serving() as server, opened() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
        page.goto(server.url)
        page.click("#example")
        expect(page.locator("#live")).to_contain_text("Forecast: A", timeout=60_000)
        page.check("[name=mode][value=read]", force=True)
        save(page, folder / "page-pair.png")

        page = browser.new_page(viewport={"width": 1280, "height": 980}, color_scheme="dark")
        page.goto(server.url)
        page.click("#tab-file")
        page.set_input_files("#file", ROOT / "examples" / "pairs.csv")
        page.click("#forecast-rows")
        expect(page.locator("#save-forecasts")).to_be_visible(timeout=60_000)
        page.select_option("#filter-order", "b")
        page.mouse.move(0, 0)
        save(page, folder / "page-file.png")


if __name__ == "__main__":
    main()
