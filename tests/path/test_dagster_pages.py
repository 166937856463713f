"""Dagster's real pages in a real browser: lineage, a contact sheet, a failed check, a run from the Launchpad."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from playwright.sync_api import Page, expect

from definitions import defs
from image_assets.data.data_checks import few_quarantined
from image_assets.data.featured_images import featured_images
from image_assets.data.raw_images import raw_images
from resources.settings import Settings, create_resources, read_settings
from scripts.home import prepare
from tests.support.dagster_pages import (
    CHROMIUM,
    dagster_ui,
    launch,
    open_asset,
    open_check,
    open_launchpad,
    open_lineage,
    show_picture,
    shown_in_lineage,
    window,
)
from tests.support.images import png, put

pytestmark = [
    pytest.mark.path,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt install chromium"),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home that took in eight photographs, and two files that are none: a fifth of all."""
    home = tmp_path_factory.mktemp("seen") / "home"
    for number in range(8):
        put(home / "landing", f"{('roses', 'tulips')[number % 2]}/photograph {number}.png", png(number))
    for name in ("roses/cut.png", "tulips/text.png"):
        put(home / "landing", name, b"no image")
    settings = read_settings(
        {"IMAGE_ASSETS_HOME": str(home), "IMAGE_ASSETS_SPARK_MASTER": "local[2]", "IMAGE_ASSETS_SETTLE_SECONDS": "0"}
    )
    prepare(settings)
    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        seen = [raw_images, featured_images, few_quarantined]
        assert dg.materialize(seen, instance=instance, resources=create_resources(settings)).success
    return settings


@pytest.fixture(scope="module")
def page(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A window on what `make dev` serves of the home."""
    with dagster_ui(settings, tmp_path_factory.mktemp("log") / "dev.log") as address, window(address) as page:
        yield page


@pytest.fixture(autouse=True)
def picture(page: Page, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """The page as each test left it, in pytest's temporary folder."""
    yield
    page.screenshot(path=tmp_path / f"{request.node.name}.png")


def test_the_lineage_shows_every_asset(page: Page) -> None:
    open_lineage(page)
    names = [key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()]
    assert [name for name in names if not shown_in_lineage(page, name)] == []


def test_an_asset_shows_its_rows_and_a_contact_sheet(page: Page) -> None:
    open_asset(page, "featured_images")
    for name in ("rows_added", "bytes", "delta_version"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    assert show_picture(page, "images").bounding_box()


def test_a_failed_check_says_what_to_do(page: Page) -> None:
    open_check(page, "image_files", "few_quarantined")
    expect(page.get_by_text("2 of 10 files are quarantined, more than 5%").first).to_be_visible()
    expect(page.get_by_text("replace broken files").first).to_be_visible()


def test_a_job_is_launched_with_its_example_and_succeeds(page: Page, settings: Settings) -> None:
    open_launchpad(page, "send_alerts")
    run_id = launch(page)
    with dg.DagsterInstance.from_config(str(settings.dagster_home)) as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    assert (run.job_name, run.status) == ("send_alerts", dg.DagsterRunStatus.SUCCESS)
    assert run.run_config == {
        "ops": {"prediction_alerts": {"config": {"arrived": [], "not_arrived": [], "dropped": []}}}
    }
