"""The gallery in a real browser, by keyboard, light and dark. Screenshots are in pytest's temporary folder."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from image_assets.data.labels import read_labels
from tests.gallery.conftest import SmallHome, small_home
from tests.gallery.small_home import layout_of, served

FOCUSED = "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
LINES = """cells => cells.map(cell => {
    const text = document.createRange(); text.selectNodeContents(cell)
    return new Set(Array.from(text.getClientRects(), line => Math.round(line.top))).size })"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_both = pytest.mark.parametrize("page", ["light", "dark"], indirect=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SmallHome:
    """Photographs on three pages, to be corrected."""
    return small_home(tmp_path_factory.mktemp("browsed"), count=130)


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Browser, home: SmallHome) -> Iterator[Page]:
    """The gallery in a window of its own, light by default; console messages and page errors fail the test."""
    with served(home.home, home.landing) as address:
        # Without transitions between pages: the browser reports each one that it skips as an error of the page.
        window = browser.new_context(
            viewport={"width": 1280, "height": 800},
            color_scheme=getattr(request, "param", "light"),
            reduced_motion="reduce",
        )
        page = window.new_page()
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(address)
        yield page
        window.close()
    assert messages == []


def picture(page: Page, folder: Path, name: str) -> None:
    """Takes a screenshot once every loaded picture has been drawn."""
    page.wait_for_load_state("networkidle")
    drawn = "Array.from(document.images).filter(one => one.complete).every(one => one.naturalWidth > 0)"
    assert page.evaluate(drawn)
    page.screenshot(path=folder / f"{name}.png")


def press_until_focused(page: Page, name: str, most: int = 40) -> None:
    """Presses Tab until the element with this accessible name has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate(FOCUSED) == name:
            return
    raise AssertionError(f"Tab does not lead to {name!r}")


def test_filtering_and_paging(page: Page, tmp_path: Path) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text("130 of 130 current files")
    assert page.locator(".grid li").count() == 60
    picture(page, tmp_path, "images")
    page.get_by_role("link", name="next page").first.press("Enter")
    expect(page.get_by_text("page 2 of 3").first).to_be_visible()
    page.get_by_role("link", name="next page").first.press("Enter")
    expect(page.locator(".grid li")).to_have_count(10)
    page.get_by_role("link", name="previous page").first.press("Enter")
    expect(page.get_by_text("page 2 of 3").first).to_be_visible()
    page.get_by_label("Path").focus()
    page.keyboard.type("tulips/photograph 00")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("5 of 130 current files")
    page.get_by_label("Result").select_option("mistakes")
    page.get_by_label("Version").select_option("1")
    page.get_by_role("button", name="Apply").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("1 of 130 current files")
    expect(page.locator(".mistake .prediction")).to_contain_text("roses")
    picture(page, tmp_path, "mistakes")
    press_until_focused(page, "mistakes: remove this filter")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("5 of 130 current files")


def test_the_focus_is_visible_and_can_skip_to_the_images(page: Page) -> None:
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    assert skip.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    assert (skip.bounding_box() or {"x": -1})["x"] >= 0
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#main$"))


def test_a_phone_shows_photographs_first_and_the_filters_on_request(page: Page) -> None:
    unfold, path = page.get_by_text("Filter and sort"), page.get_by_label("Path")
    expect(unfold).to_be_hidden()
    expect(path).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    expect(path).to_be_hidden()
    assert (page.locator(".grid img").first.bounding_box() or {"y": 844})["y"] < 844 / 2
    press_until_focused(page, "Filter and sort")
    page.keyboard.press("Enter")
    expect(path).to_be_visible()
    page.keyboard.press("Tab")
    expect(path).to_be_focused()


@pytest.mark.parametrize("width", [390, 1280])
def test_long_labels_wrap_in_the_predictions_of_an_image_and_words_do_not(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.locator(".grid a").first.click()
    page.locator("td .prediction bdi").first.evaluate("label => label.textContent = 'a long name '.repeat(10)")
    page.locator(".current .label").evaluate("label => label.textContent = 'w'.repeat(120)")
    # As if twenty-four versions had predicted.
    page.locator(".numbers tr").evaluate_all(
        "rows => rows.forEach(row => Array(22).fill().forEach(() => row.append(row.lastElementChild.cloneNode(true))))"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    lines = page.locator("thead th:first-child, .numbers td").evaluate_all(LINES)
    assert set(lines) == {1}


@in_both
def test_the_colors_follow_the_system(page: Page, request: pytest.FixtureRequest) -> None:
    shade = page.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (shade > 128) == ("light" in request.node.name)


@in_both
def test_a_label_is_corrected_and_the_correction_undone_by_keyboard(
    page: Page, home: SmallHome, tmp_path: Path
) -> None:
    page.goto(f"{page.url}?answer=mistakes&version=1")
    press_until_focused(page, page.locator(".grid a").first.inner_text())
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("photograph 001.png")
    picture(page, tmp_path, "one")
    page.get_by_label("Your name").fill("Ada")
    page.get_by_label("Correct label").focus()
    page.keyboard.type("roses")
    press_until_focused(page, "Save label", most=6)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("roses corrected by Ada, was tulips")
    picture(page, tmp_path, "corrected")
    image = home.images[1]
    assert (
        read_labels(home.delta_tables, layout_of(home.landing)).corrected[image["path"], image["image_id"]] == "roses"
    )
    page.get_by_role("link", name="Back to images").press("Enter")
    expect(page.get_by_text("No images match these filters")).to_be_visible()
    page.go_back()
    page.get_by_text("Change label again").press("Enter")
    expect(page.get_by_label("Your name")).to_have_value("Ada")
    page.get_by_role("button", name="Undo correction").press("Enter")
    expect(page.get_by_role("status")).to_have_text("tulips")
    assert (
        read_labels(home.delta_tables, layout_of(home.landing)).corrected[image["path"], image["image_id"]] == "tulips"
    )
