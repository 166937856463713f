"""A wrong label marked in the gallery: what lands in label_corrections, what pages show, what is refused."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from gallery.queries import Filters, read_image, read_page
from image_assets.data.labels import said_labels
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS, IMAGE_FILES, LABEL_CORRECTIONS
from tests.gallery.conftest import SmallHome
from tests.gallery.small_home import append, featured, landed, served

FORM = {"label": "tulips", "corrected_by": "Ada", "comment": "it <b>is</b> one", "kind": "label"}


class Form:
    """The form on an image's page, sent to a gallery."""

    def __init__(self, address: str, home: SmallHome) -> None:
        self.address, self.home = address, home

    def send(self, number: int, origin: str | None = None, **said: str) -> tuple[int, bytes]:
        """Status and page of the answer to the form of one of the photographs."""
        image = self.home.images[number]
        query = urlencode({"label": image["label"], "path": image["path"], "at": 1})
        body = urlencode({"image_id": image["image_id"], **FORM, **said}).encode()
        request = urllib.request.Request(f"{self.address}/corrections?{query}", body)
        request.add_header("Origin", self.address if origin is None else origin)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert answer.url == f"{self.address}/image?{query}"
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def labels(self) -> list[str | None]:
        """The labels of the corrected images, by the tables."""
        found = said_labels(self.home.thin_tables).corrected
        return [found[key] for image in self.home.images if (key := (image["path"], image["image_id"])) in found]


@pytest.fixture
def form(own_home: SmallHome) -> Iterator[Form]:
    with served(own_home.home, own_home.landing) as address:
        yield Form(address, own_home)


def test_a_correction_lands_in_its_table_and_shows_at_once(form: Form) -> None:
    status, page = form.send(0)
    assert status == 200
    assert b"corrected by <bdi>Ada</bdi>, was <bdi>roses</bdi>" in page
    assert b"it &lt;b&gt;is&lt;/b&gt; one" in page
    assert form.labels() == ["tulips"]
    row = form.home.thin_tables.read(LABEL_CORRECTIONS, LABEL_CORRECTIONS.columns.fieldNames()).to_pylist()[0]
    assert (row["former_label"], row["label"], row["withdrawn"]) == ("roses", "tulips", False)
    index = form.home.index()
    assert read_page(index, Filters(label="tulips")).count == 13
    assert read_page(index, Filters(labelled="corrected")).count == 1
    assert {image["path"] for image in read_page(index, Filters(answer="mistakes")).images} == {
        form.home.images[number]["path"] for number in (0, 1, 4)
    }


def test_the_newest_word_counts_and_can_be_taken_back(form: Form) -> None:
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


def test_what_is_taken_back_shows_the_label_tables_label_where_there_is_one(form: Form) -> None:
    path = form.home.images[0]["path"]
    append(form.home.thin_tables, GIVEN_LABELS, [{"path": path, "label": "peonies", "state": "given"}])
    form.send(0)
    form.send(0, kind="folder")
    image = read_image(form.home.index(), path)
    assert image is not None
    assert (image["label"], image["corrected"]) == ("peonies", False)


def test_the_label_that_it_has_is_no_correction(form: Form) -> None:
    assert form.send(1)[0] == 200
    assert form.labels() == []


def test_every_file_with_the_same_bytes_is_corrected(form: Form) -> None:
    thin_tables, landing, image = form.home.thin_tables, form.home.landing, form.home.images[0]
    copy = landed(landing, "roses/copy.png", image["content"], 1)
    append(thin_tables, IMAGE_FILES, [copy])
    append(thin_tables, FEATURED_IMAGES, [featured(copy, image["content"], landing)])
    with served(form.home.home, landing) as address:
        Form(address, form.home).send(0)
    assert {path for path, _ in said_labels(thin_tables).corrected} == {image["path"], copy["path"]}


@pytest.mark.parametrize(
    ("said", "status", "message"),
    [
        ({"image_id": "0" * 64}, 409, b"other bytes"),
        ({"corrected_by": " "}, 400, b"expected who corrects"),
        ({"label": ""}, 400, b"expected letters"),
        ({"new_label": "../x"}, 400, b"without slashes"),
        ({"new_label": "a\x00b"}, 400, b"control characters"),
        ({"new_label": "x" * 256}, 400, b"at most 255"),
        ({"comment": "x" * 1001}, 400, b"at most 1000"),
        ({"comment": "x" * 20_000}, 413, b"expected a form of at most"),
        ({"origin": "http://127.0.0.1:3000"}, 403, b"another page"),
        ({"origin": "null"}, 403, b"another page"),
        ({"origin": ""}, 403, b"another page"),
    ],
    ids=lambda said: str(said)[:30],
)
def test_what_is_wrong_is_refused_and_nothing_kept(
    form: Form, said: dict[str, str], status: int, message: bytes
) -> None:
    answer = form.send(0, **said)
    assert answer[0] == status
    assert message in answer[1]
    assert form.labels() == []


def test_a_form_without_a_page_is_refused(form: Form) -> None:
    for method in ("GET", "PUT", "DELETE"):
        request = urllib.request.Request(f"{form.address}/corrections?path=x", method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=20)
        assert refused.value.code in (403, 405)
