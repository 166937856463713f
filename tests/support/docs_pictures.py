"""The pictures of real pages in docs/pictures: `python -m tests.support.docs_pictures [HOME]` draws them anew.

On sample images, which a run of the demo takes from files to predictions, in a temporary home; a HOME that is named is
kept, and taken as it is where it is there already. Look at each picture before you keep it.
"""

import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from PIL import Image
from playwright.sync_api import Page

from resources.settings import Settings, read_settings
from scripts.sample_images import write_sample_images
from tests.gallery.docs_picture import gallery_picture
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
from tests.support.served import wait_for

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
COLORS = (160, 96, 64, 40)
MOST_BYTES = 150_000
BROKEN = 24  # of about 300 files
SENSORS_SECONDS = 45  # until every sensor has looked once
FADING = 1500  # milliseconds, in which the page moves things to their places


def keep(name: str, picture: bytes) -> None:
    """A picture of the documentation, with as many colors as fit into so few bytes."""
    file = FOLDER / f"{name}.png"
    with Image.open(BytesIO(picture)) as drawn:
        for colors in COLORS:
            drawn.convert("RGB").quantize(colors).save(file, "PNG", optimize=True)
            if file.stat().st_size <= MOST_BYTES:
                return


def take(name: str, page: Page, left: float = 0, top: float = 0) -> None:
    """The page as a picture, or what is right and below of a point, once nothing more comes from the server."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(FADING)
    width, height = SIZE["width"] - left, SIZE["height"] - top
    keep(name, page.screenshot(clip={"x": left, "y": top, "width": width, "height": height}))


def fill(settings: Settings) -> None:
    """A home of sample images, some of them cut in half, after a run of the demo."""
    landing = settings.home / "landing"
    write_sample_images(landing)
    for number, file in enumerate(sorted((landing / "spots").glob("*.jpg"))[:BROKEN]):
        content = file.read_bytes()
        (landing / "spots" / f"broken_upload_{number:02}.jpg").write_bytes(content[: len(content) // 3])
    environment = {**os.environ, "IMAGE_ASSETS_HOME": str(settings.home)}
    subprocess.run([sys.executable, "-m", "scripts.demo"], cwd=ROOT, env=environment, check=True)


def draw(page: Page) -> None:
    """Each page in turn; what the browser is told to hide stays hidden."""
    open_lineage(page)
    panel = page.get_by_placeholder("Jump to").bounding_box()
    assert panel is not None
    take("lineage", page, left=panel["x"] + panel["width"] + 52, top=panel["y"] + panel["height"] + 14)
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
    """Whether no run goes on: the sensors ask for some when they look for the first time."""
    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        return not instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES), limit=1)


def main(home: Path) -> None:
    """Draw all of them."""
    settings = read_settings({**os.environ, "IMAGE_ASSETS_HOME": str(home)})
    if not (home / "tables").is_dir():
        fill(settings)
    FOLDER.mkdir(exist_ok=True)
    keep("gallery", gallery_picture())
    log = home / "dev.log"
    with dagster_ui(settings, log) as address, window(address) as page:
        time.sleep(SENSORS_SECONDS)
        wait_for(lambda: calm(settings), "the end of what the sensors ask for", log)
        draw(page)


if __name__ == "__main__":
    if named := sys.argv[1:]:
        main(Path(named[0]).absolute())
    else:
        with TemporaryDirectory() as folder:
            main(Path(folder, "home"))
