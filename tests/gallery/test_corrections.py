"""Label corrections: the rows in label_corrections, what pages show, what is rejected."""

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlencode

import pytest

from gallery.queries import read_image, read_page
from image_assets.data.labels import read_labels
from image_assets.predictions.image_filters import Filters
from image_assets.predictions.image_index import read_index
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS, IMAGE_FILES, LABEL_CORRECTIONS
from tests.gallery.conftest import SmallHome
from tests.gallery.small_home import append, featured, landed, layout_of, served
from tests.support.images import png

FORM = {"label": "tulips", "corrected_by": "Ada", "comment": "it <b>is</b> one", "kind": "label"}


class Form:
    """The form on an image's page, sent to a gallery."""

    def __init__(self, address: str, home: SmallHome) -> None:
        self.address, self.home = address, home

    def send(self, number: int, origin: str | None = None, site: str = "", **fields: str) -> tuple[int, bytes]:
        """Status and page of the response to the form of one of the photographs."""
        image = self.home.images[number]
        query = urlencode({"label": image["label"], "path": image["path"], "at": 1})
        body = urlencode({"image_id": image["image_id"], **FORM, **fields}).encode()
        request = urllib.request.Request(f"{self.address}/corrections?{query}", body)
        request.add_header("Origin", self.address if origin is None else origin)
        if site:
            request.add_header("Sec-Fetch-Site", site)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                assert response.url == f"{self.address}/image?{query}"
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def labels(self) -> list[str | None]:
        """The labels of the corrected images, in the tables."""
        found = read_labels(self.home.delta_tables, layout_of(self.home.landing)).corrected
        return [found[key] for image in self.home.images if (key := (image["path"], image["image_id"])) in found]


@pytest.fixture
def form(own_home: SmallHome) -> Iterator[Form]:
    with served(own_home.home, own_home.landing) as address:
        yield Form(address, own_home)


def test_a_correction_is_stored_and_shown_at_once(form: Form) -> None:
    status, page = form.send(0)
    assert status == 200
    assert b"corrected by <bdi>Ada</bdi>, was <bdi>roses</bdi>" in page
    assert b"it &lt;b&gt;is&lt;/b&gt; one" in page
    assert form.labels() == ["tulips"]
    row = form.home.delta_tables.read(LABEL_CORRECTIONS, LABEL_CORRECTIONS.columns.fieldNames()).to_pylist()[0]
    assert (row["former_label"], row["label"], row["withdrawn"]) == ("roses", "tulips", False)
    index = form.home.index()
    assert read_page(index, Filters(label="tulips")).count == 13
    assert read_page(index, Filters(label_status="corrected")).count == 1
    assert {image["path"] for image in read_page(index, Filters(result="mistakes")).images} == {
        form.home.images[number]["path"] for number in (0, 1, 4)
    }


def test_the_newest_correction_counts_and_can_be_undone(form: Form) -> None:
    form.send(0)
    form.send(0, new_label="peonies")
    assert form.labels() == ["peonies"]
    form.send(0, kind="none")
    assert form.labels() == [None]
    assert b"(undone)" in form.send(0, kind="folder")[1]
    assert form.labels() == ["roses"]
    image = read_image(form.home.index(), form.home.images[0]["path"])
    assert image is not None
    assert (image["label"], image["corrected"]) == ("roses", False)


def test_an_undone_correction_restores_the_label_tables_label(form: Form) -> None:
    path = form.home.images[0]["path"]
    append(form.home.delta_tables, GIVEN_LABELS, [{"path": path, "label": "peonies", "state": "given"}])
    form.send(0)
    form.send(0, kind="folder")
    image = read_image(form.home.index(), path)
    assert image is not None
    assert (image["label"], image["corrected"]) == ("peonies", False)


def test_labels_that_are_merged_in_the_tables_are_merged_here_too(own_home: SmallHome) -> None:
    delta_tables, (image, *_) = own_home.delta_tables, own_home.images
    append(delta_tables, GIVEN_LABELS, [{"path": image["path"], "label": "Red  Tulips", "state": "given"}])
    layout = replace(layout_of(own_home.landing), merged=True)

    def shown() -> str | None:
        index = read_index(delta_tables, merge_labels=True)
        return (read_image(index, image["path"]) or {})["label"]

    with served(own_home.home, own_home.landing, merge_labels=True) as address:
        form = Form(address, own_home)
        assert b"<bdi>big tulips</bdi>" in form.send(0, new_label="Big Tulips")[1]
        assert form.labels() == [shown()] == ["big tulips"]
        assert b"The label is big tulips already" in form.send(0, new_label=" BIG tulips")[1]
        form.send(0, kind="folder")
    assert read_labels(delta_tables, layout).of((image["path"], image["image_id"])) == shown() == "red tulips"


@pytest.mark.parametrize("folder", ["گربه\u200cها", "cats ", "green\u00a0tea"])
def test_any_label_that_a_folder_has_can_be_chosen_and_restored(own_home: SmallHome, folder: str) -> None:
    file = landed(own_home.landing, f"{folder}/one.png", png(80), 80)
    append(own_home.delta_tables, IMAGE_FILES, [file])
    append(own_home.delta_tables, FEATURED_IMAGES, [image := featured(file, png(80), own_home.landing)])
    own_home.images.append(image)
    with served(own_home.home, own_home.landing) as address:
        form = Form(address, own_home)
        assert form.send(0, label=folder)[0] == 200
        assert form.send(24, label="roses")[0] == 200
        assert form.labels() == [folder, "roses"]
        assert form.send(24, kind="folder")[0] == 200
    assert (read_image(own_home.index(), file["path"]) or {})["label"] == folder


@pytest.mark.parametrize("fields", [{}, {"new_label": "tulips"}, {"kind": "folder"}])
def test_a_form_that_changes_nothing_is_rejected(form: Form, fields: dict[str, str]) -> None:
    status, page = form.send(1, **fields)
    assert status == 400
    assert b"The label is tulips already, so nothing was saved" in page
    assert form.home.delta_tables.read(LABEL_CORRECTIONS, ["path"]).num_rows == 0
    form.send(1, kind="none")
    assert b"The image has no label already, so nothing was saved" in form.send(1, kind="none")[1]
    assert form.labels() == [None]


@pytest.mark.parametrize("number", [0, 1, 4])  # predictions of versions 1 and 2 are right or wrong
def test_the_form_starts_with_the_current_label_also_if_a_prediction_differs(form: Form, number: int) -> None:
    image = form.home.images[number]
    url = f"{form.address}/image?{urlencode({'path': image['path']})}"

    def selected() -> list[str]:
        with urllib.request.urlopen(url, timeout=20) as response:
            return re.findall(r'<option value="([^"]*)" selected', response.read().decode())

    assert selected() == [image["label"]]
    form.send(number, new_label="peonies")
    assert selected() == ["peonies"]
    form.send(number, kind="none")
    assert selected() == [""]
    assert b"must not be empty" in form.send(number, label="")[1]


def test_every_file_with_the_same_bytes_is_corrected(form: Form) -> None:
    delta_tables, landing, image = form.home.delta_tables, form.home.landing, form.home.images[0]
    copy = landed(landing, "roses/copy.png", image["content"], 1)
    append(delta_tables, IMAGE_FILES, [copy])
    append(delta_tables, FEATURED_IMAGES, [featured(copy, image["content"], landing)])
    with served(form.home.home, landing) as address:
        Form(address, form.home).send(0)
    assert {path for path, _ in read_labels(delta_tables, layout_of(landing)).corrected} == {
        image["path"],
        copy["path"],
    }


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"image_id": "0" * 64}, 409, b"since you opened this page"),
        ({"corrected_by": " "}, 400, b"expected your name"),
        ({"label": ""}, 400, b"must not be empty"),
        ({"new_label": "../x"}, 400, b"without slashes"),
        ({"new_label": "a\x00b"}, 400, b"control characters"),
        ({"new_label": "x" * 256}, 400, b"at most 255"),
        ({"comment": "x" * 1001}, 400, b"at most 1000"),
        ({"comment": "x" * 20_000}, 413, b"form is too large"),
        ({"origin": "http://127.0.0.1:3000"}, 403, b"another page"),
        ({"origin": "null"}, 403, b"another page"),
        ({"origin": ""}, 403, b"another page"),
        ({"site": "cross-site"}, 403, b"another page"),
        ({"site": "same-site"}, 403, b"another page"),
        ({"site": "none"}, 403, b"another page"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_invalid_forms_are_rejected_and_nothing_is_stored(
    form: Form, fields: dict[str, str], status: int, message: bytes
) -> None:
    response = form.send(0, **fields)
    assert response[0] == status
    assert message in response[1]
    assert form.labels() == []


def test_other_methods_are_rejected(form: Form) -> None:
    for method in ("GET", "PUT", "DELETE"):
        request = urllib.request.Request(f"{form.address}/corrections?path=x", method=method)
        with pytest.raises(urllib.error.HTTPError) as rejected:
            urllib.request.urlopen(request, timeout=20)
        assert rejected.value.code in (403, 405)
