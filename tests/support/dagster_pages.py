"""Dagster's pages in Debian's chromium, opened as a user would, for tests and for screenshots."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, ViewportSize, expect, sync_playwright

from image_assets.jobs.launchpad_examples import EXAMPLES
from resources.pictures import ADDRESS
from resources.settings import Settings
from scripts.dev import is_up
from tests.support.served import free_port, served, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SIZE: ViewportSize = {"width": 1360, "height": 850}
LINEAGE_SIZE: ViewportSize = {"width": 1700, "height": 1500}  # the graph is scaled to fit, but not without limit
PICTURE = f"img[src^='{ADDRESS}/']"
SECONDS = 1000.0  # Playwright counts in milliseconds


@contextmanager
def dagster_ui(settings: Settings, log: Path) -> Iterator[str]:
    """Run the services of `make dev` on a home, and yield the address of Dagster's UI."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with served(settings, log, {"DAGSTER_PORT": port}):
        wait_for(lambda: is_up(f"{address}/server_info"), "Dagster's UI", log)
        yield address


@contextmanager
def window(address: str) -> Iterator[Page]:
    """Open the UI in a browser window, with the light theme."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(base_url=address, viewport=SIZE, color_scheme="light")
        page.set_default_timeout(60 * SECONDS)
        expect.set_options(timeout=60 * SECONDS)
        yield page
        browser.close()


def open_lineage(page: Page) -> None:
    """Open the graph of all assets with its groups expanded."""
    page.set_viewport_size(LINEAGE_SIZE)
    page.goto("/asset-groups")
    expect(page.get_by_role("button", name="Materialize all")).to_be_visible()
    page.keyboard.press("Alt+e")
    expect(page.locator("foreignObject").get_by_text("version_agreements").first).to_be_visible()


def shown_in_lineage(page: Page, asset: str) -> bool:
    """Return whether the graph shows the asset; a small graph truncates long names in the middle."""
    start, end = re.escape(asset[:5]), re.escape(asset[-8:])
    names = page.locator("foreignObject").all_text_contents()
    return any(re.fullmatch(f"{re.escape(asset)}|{start}.*….*{end}", name.strip()) for name in names)


def open_asset(page: Page, asset: str) -> None:
    """Open an asset's page with the metadata of its latest materialization."""
    page.goto(f"/assets/{asset}?view=overview")
    expect(page.locator(PICTURE).first).to_be_visible()


def show_picture(page: Page, entry: str) -> Locator:
    """Scroll to a picture of the asset's metadata and return it once it is decoded."""
    row = page.get_by_role("row").filter(has=page.get_by_text(entry, exact=True))
    picture = row.locator(PICTURE).first
    picture.scroll_into_view_if_needed()
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 100
    return picture


def open_check(page: Page, asset: str, check: str) -> None:
    """Open one of an asset's checks."""
    page.goto(f"/assets/{asset}?view=checks&checkDetail={check}")
    expect(page.get_by_text("Latest execution").first).to_be_visible()


def open_launchpad(page: Page, job: str) -> None:
    """Open a job's Launchpad with its example config by the link on the job's page."""
    page.goto(f"/locations/definitions/jobs/{job}")
    page.get_by_role("link", name="Open this in the Launchpad").click()
    first_line = EXAMPLES[job].splitlines()[0].partition(" #")[0]
    expect(page.locator(".CodeMirror-code")).to_contain_text(first_line)


def launch(page: Page) -> str:
    """Launch the job, wait until the run's page shows success, and return the run's id."""
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url(re.compile("/runs/"))
    expect(page.get_by_text("Success", exact=True).first).to_be_visible(timeout=300 * SECONDS)
    return page.url.rpartition("/")[2].partition("?")[0]
