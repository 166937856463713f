"""Takes the screenshots in docs/pictures: `python -m tests.support.docs_pictures [HOME]`.

They show a home of photographs after a run of the demo; see tests/support/docs_photographs.py for what that needs. An
existing HOME is used as it is. Check each picture before you commit it.
"""

import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
from PIL import Image
from playwright.sync_api import FloatRect, Page, ViewportSize

from resources.settings import Settings, read_settings
from sensors.attempts import ACTIVE
from tests.gallery import small_home
from tests.support.dagster_pages import (
    SIZE,
    dagster_ui,
    open_asset,
    open_check,
    open_launchpad,
    open_lineage,
    show_picture,
    window,
)
from tests.support.docs_photographs import write_photographs
from tests.support.served import wait_for

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
QUALITY = 85  # of 100: text stays sharp, and a page of photographs has 140 KB
GALLERY_SIZE: ViewportSize = {"width": 1200, "height": 720}
SENSORS_SECONDS = 45  # until every sensor has looked once
FADING = 3000  # milliseconds, in which the page moves things to their places


def save(name: str, picture: bytes) -> None:
    """Save a screenshot as a picture of the documentation."""
    with Image.open(BytesIO(picture)) as drawn:
        drawn.convert("RGB").save(FOLDER / f"{name}.webp", quality=QUALITY, method=6)


def take(name: str, page: Page, left: float = 0, top: float = 0) -> None:
    """Take a screenshot of the page from a point on, once the network is idle."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(FADING)
    size = page.viewport_size or SIZE
    clip = FloatRect(x=left, y=top, width=size["width"] - left, height=size["height"] - top)
    save(name, page.screenshot(clip=clip))


def fill(settings: Settings) -> None:
    """Copy photographs into a home and run the demo on them."""
    write_photographs(settings.home / "landing")
    environment = {**os.environ, "IMAGE_ASSETS_HOME": str(settings.home)}
    for command in ("demo", "check-data"):
        subprocess.run([sys.executable, "-m", "scripts", command], cwd=ROOT, env=environment, check=True)


def draw_gallery(home: Path) -> None:
    """The newest photographs in the gallery."""
    with small_home.served(home, home / "landing") as address, window(address) as page:
        page.set_viewport_size(GALLERY_SIZE)
        page.goto("/?sort=newest")
        page.wait_for_load_state("networkidle")
        save("gallery", page.screenshot())


def draw(page: Page) -> None:
    """Take a screenshot of each page."""
    open_lineage(page)
    panel = page.get_by_placeholder("Jump to").bounding_box()
    assert panel is not None
    left, top = panel["x"] + panel["width"] + 52, panel["y"] + panel["height"] + 14
    page.mouse.move(left + 100, top + 100)
    page.mouse.down()
    page.mouse.move(left + 100, top + 140, steps=5)  # down: the first group's name is behind the search field
    page.mouse.up()
    take("lineage", page, left=left, top=top)
    page.set_viewport_size(SIZE)
    page.get_by_text("Hide navigation").click()
    open_asset(page, "featured_images")
    page.get_by_role("button", name="Columns").click()
    take("asset", page)
    show_picture(page, "images")
    take("contact_sheet", page)
    open_asset(page, "model_evaluations")
    page.get_by_role("button", name="Metadata").evaluate("button => button.scrollIntoView()")
    take("model", page)
    show_picture(page, "confusion_matrix_v1")
    take("confusion_matrix", page)
    open_check(page, "image_files", "few_quarantined")
    take("failed_check", page)
    open_launchpad(page, "train_models")
    take("launchpad", page)


def calm(settings: Settings) -> bool:
    """Return whether no run is active; the first ticks of the sensors request some."""
    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        return not instance.get_runs(dg.RunsFilter(statuses=ACTIVE), limit=1)


def main(home: Path) -> None:
    """Take all screenshots."""
    settings = read_settings({**os.environ, "IMAGE_ASSETS_HOME": str(home)})
    if not (home / "tables").is_dir():
        fill(settings)
    FOLDER.mkdir(exist_ok=True)
    draw_gallery(home)
    log = home / "dev.log"
    with dagster_ui(settings, log) as address, window(address) as page:
        time.sleep(SENSORS_SECONDS)
        wait_for(lambda: calm(settings), "the end of the sensors' runs", log)
        draw(page)


if __name__ == "__main__":
    if named := sys.argv[1:]:
        main(Path(named[0]).absolute())
    else:
        with TemporaryDirectory() as folder:
            main(Path(folder, "home"))
