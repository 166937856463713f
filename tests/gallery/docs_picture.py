"""The picture of the gallery in docs/gallery.md, from sample images; tests/docs_pictures.py keeps it."""

import shutil
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from image_assets.images.pixels import UnreadableImage
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_PREDICTIONS
from resources.delta.thin_tables import ThinTables
from scripts.sample_images import write_sample_images
from tests.gallery.small_home import Row, append, featured, landed, predicted, served

SIZE = {"width": 1200, "height": 720}


def write_samples(home: Path, landing: Path) -> None:
    """Tables of sample images, and made-up answers to them."""
    write_sample_images(landing, per_label=16)
    thin_tables, random = ThinTables(root=str(home / "tables")), Random(3)
    files: list[Row] = []
    images: list[Row] = []
    for number, file in enumerate(sorted(landing.glob("*/*"))):
        content = file.read_bytes()
        try:
            row = landed(landing, str(file.relative_to(landing)), content, number)
            images.append(featured(row, content, landing))
        except UnreadableImage as error:
            row |= {"state": "quarantined", "reason": error.reason, "message": str(error)}
        files.append(row)
    labels = sorted({image["label"] for image in images})
    answers = [
        predicted(image, version, image["label"] if random.random() < 0.8 else random.choice(labels), random.random())
        for version in (1, 2)
        for image in images
    ]
    for table, rows in ((IMAGE_FILES, files), (FEATURED_IMAGES, images), (IMAGE_PREDICTIONS, answers)):
        append(thin_tables, table, rows)


def gallery_picture() -> bytes:
    """A page of the gallery, as a PNG."""
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        home, landing = Path(folder, "home"), Path(folder, "landing")
        write_samples(home, landing)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        with served(home, landing) as address:
            page = browser.new_page(viewport=SIZE)
            page.goto(f"{address}/?apart=versions&sort=sure")
            page.wait_for_load_state("networkidle")
            picture = page.screenshot()
        browser.close()
    return picture
