"""The gallery over HTTP: pages, pictures, rejected requests, hostile names."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from gallery.neighbors import LiveEmbeddings
from gallery.pages import image_page
from image_assets.models.image_embeddings import follow_featured_images
from image_assets.schemas import FEATURED_IMAGES, IMAGE_FILES, IMAGE_PREDICTIONS, IMAGE_SPLITS, REPLAYED_FILES
from resources.mlflow.model_registry import ModelVersion
from tests.gallery.conftest import SmallHome
from tests.gallery.small_home import HOSTILE, NOON, append, featured, landed, predicted, served
from tests.support.embedded import color_network
from tests.support.images import png
from tests.support.tables import tables_at


@pytest.fixture(scope="module")
def address(photographs: SmallHome) -> Iterator[str]:
    with served(photographs.home, photographs.landing) as address:
        yield address


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by their lower-case names, body; redirects are followed."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:
            return response.status, {name.lower(): value for name, value in response.headers.items()}, response.read()
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


class Parsed(HTMLParser):
    """The elements and addresses of a page."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def links(self, start: str) -> list[str]:
        return [value or "" for name, value in self.attributes if name == "href" and (value or "").startswith(start)]


def test_the_page_of_images_counts_and_links_each(address: str) -> None:
    status, headers, page = get(f"{address}/?label=roses")
    assert status == 200
    assert b"<strong>12</strong> of 24 current files" in page
    assert len(Parsed(page).links("/image?")) == 12
    assert "script" not in Parsed(page).tags
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_a_page_says_how_to_repair_a_lost_table_and_works_again_once_it_is_back(own_home: SmallHome) -> None:
    log = own_home.home / "tables" / IMAGE_SPLITS.name / "_delta_log"
    log.rename(log.with_name("moved"))
    with served(own_home.home, own_home.landing) as address:
        status, _, page = get(f"{address}/")
        assert status == 503
        assert b"the table image_splits is gone" in page
        assert b"launch the job repair_tables" in page
        log.with_name("moved").rename(log)
        assert get(f"{address}/")[0] == 200


def test_a_form_leads_to_a_short_url(address: str) -> None:
    with urllib.request.urlopen(f"{address}/?text=&label=roses&version=&least=&sort=name&page=1") as response:
        assert response.url == f"{address}/?label=roses"


def test_an_abstention_and_an_unlike_image_are_shown_and_found(own_home: SmallHome) -> None:
    first, second = own_home.images[:2]
    abstained = predicted(first, 3, None, 0.52) | {
        "fault": None,
        "abstained": True,
        "most_probable_label": "roses",
        "distance_from_training": 0.25,
        "unlike_training": True,
    }
    answered = predicted(second, 3, "tulips", 0.9) | {"abstained": False, "most_probable_label": "tulips"}
    append(own_home.delta_tables, IMAGE_PREDICTIONS, [abstained, answered])
    with served(own_home.home, own_home.landing) as address:
        for query in ("answer=abstained", "answer=unlike"):
            page = get(f"{address}/?{query}&version=3")[2]
            assert b"<strong>1</strong> of 24 current files" in page
            assert b"abstained: perhaps <bdi>roses</bdi> <data>0.52</data>" in page
        assert b"<strong>0</strong> of 24" in get(f"{address}/?answer=mistakes&version=3")[2]
        image = get(f"{address}/image?{urlencode({'path': first['path']})}")[2]
        assert b"unlike the training images (distance 0.25)" in image


def test_every_link_works(address: str) -> None:
    start = Parsed(get(f"{address}/?answer=mistakes")[2])
    one = start.links("/image?")[0]
    for link in {*start.links("/?"), *start.links("/image?"), *Parsed(get(f"{address}{one}")[2]).links("/i")}:
        assert get(f"{address}{link}")[0] == 200, link


def test_the_page_of_one_image_links_to_its_neighbors(address: str, photographs: SmallHome) -> None:
    query = urlencode({"label": "roses", "path": photographs.images[2]["path"], "at": 2})
    parsed = Parsed(get(f"{address}/image?{query}")[2])
    adjacent = parsed.links("/image?label=roses")
    assert [link.partition("path=")[2] for link in adjacent] == [
        urlencode({"path": photographs.images[number]["path"], "at": at}).removeprefix("path=")
        for number, at in ((0, 1), (4, 3))
    ]
    assert parsed.links("/?label=roses")


def test_pictures_are_small_jpegs_that_browsers_cache(address: str, photographs: SmallHome) -> None:
    url = f"{address}/images/{photographs.images[0]['image_id']}/thumbnail"
    status, headers, picture = get(url)
    assert (status, headers["content-type"], picture[:2]) == (200, "image/jpeg", b"\xff\xd8")
    assert "immutable" in headers["cache-control"]
    assert get(url, **{"If-None-Match": headers["etag"]})[0] == 304


@pytest.mark.parametrize(
    "path",
    [
        "/image?path=file:/etc/passwd",
        "/image",
        "/images/..%2F..%2Fetc%2Fpasswd/thumbnail",
        f"/images/{'0' * 64}/thumbnail",
        "/static/../__main__.py",
        "/static/%2e%2e/__main__.py",
        "/nothing",
    ],
)
def test_files_outside_the_tables_are_not_found(address: str, path: str) -> None:
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)  # does not normalize dots
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 404
    assert b"root:" not in response.read()


def test_an_invalid_parameter_is_explained(address: str, photographs: SmallHome) -> None:
    status, _, page = get(f"{address}/?least=x")
    assert status == 400
    assert b"least is &#39;x&#39;" in page
    status, _, page = get(f"{address}/image?{urlencode({'path': photographs.images[0]['path'], 'at': -1})}")
    assert status == 400
    assert b"at is &#39;-1&#39;" in page


@pytest.mark.parametrize(("path", "status"), [("nothing", 404), ("static/nothing.css", 404), ("corrections", 405)])
def test_an_unknown_address_is_explained_once_and_leads_back(address: str, path: str, status: int) -> None:
    found, _, page = get(f"{address}/{path}")
    assert found == status
    assert b"There is no page at this address." in page
    assert b"Not" not in page
    assert b'<a href="/">All images</a>' in page


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"])
def test_other_host_names_are_rejected(address: str, host: str) -> None:
    assert get(address, Host=host)[0] == 400


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_can_link_to_a_page_but_not_use_it(address: str, photographs: SmallHome, site: str) -> None:
    picture = f"{address}/images/{photographs.images[0]['image_id']}/thumbnail"
    sent = {"Sec-Fetch-Site": site}
    assert get(address, **sent, **{"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"})[0] == 200
    assert get(address, **sent, **{"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"})[0] == 403
    assert get(picture, **sent, **{"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"})[0] == 403
    assert get(picture, Origin="http://evil.example")[0] == 403


def test_an_empty_home_explains_what_to_do(tmp_path: Path) -> None:
    with served(tmp_path / "home", tmp_path) as address:
        status, _, page = get(address)
        assert status == 200
        assert b"No images yet" in page
        assert b"make demo" in page
        assert b"No images match these filters" in get(f"{address}/?label=roses")[2]


def test_hostile_names_are_escaped(own_home: SmallHome) -> None:
    delta_tables, landing = own_home.delta_tables, own_home.landing
    file = landed(landing, f"{HOSTILE}/<script>alert(1)</script>.png".replace("</", "<"), png(99), 99)
    image = featured(file, png(99), landing)
    assert image["label"] == HOSTILE
    append(delta_tables, IMAGE_FILES, [file])
    append(delta_tables, FEATURED_IMAGES, [{**image, "decode_warning": HOSTILE}])
    append(delta_tables, IMAGE_PREDICTIONS, [predicted(image, 2, HOSTILE, 0.9)])
    one = f"/image?{urlencode({'path': file['path']})}"
    with served(own_home.home, landing) as address:
        for url in ("/?sort=newest", one, f"/?{urlencode({'text': HOSTILE, 'label': HOSTILE})}"):
            status, _, page = get(f"{address}{url}")
            assert status == 200
            parsed = Parsed(page)
            assert "script" not in parsed.tags
            assert "onerror" not in {name for name, _ in parsed.attributes}
            assert b"onerror=alert(1)" in page
        assert b"&lt;script&gt;alert(1)" in get(f"{address}{one}")[2]


def test_a_quarantined_file_is_shown_with_its_reason_and_never_decoded(own_home: SmallHome) -> None:
    file = landed(own_home.landing, "roses/broken.png", b"not an image", 1)
    quarantined = {"state": "quarantined", "reason": "not_an_image", "message": "it begins with b'not an i'"}
    append(own_home.delta_tables, IMAGE_FILES, [{**file, **quarantined}])
    replay = {"reason_before": "empty", "state": "quarantined", "reason": "not_an_image", "replayed_at": NOON}
    append(own_home.delta_tables, REPLAYED_FILES, [{"path": file["path"], **replay}])
    with served(own_home.home, own_home.landing) as address:
        page = get(f"{address}/?state=quarantined&reason=not_an_image")[2]
        assert b"<strong>1</strong> of 1 quarantined files" in page
        one = get(f"{address}/image?{urlencode({'path': file['path']})}")[2]
        assert b"it begins with" in one
        assert b"re-validated: was quarantined as empty, now quarantined: not_an_image" in one
        assert get(f"{address}/images/{file['image_id']}/view")[0] == 404


def test_a_home_of_quarantined_files_leads_to_them(tmp_path: Path) -> None:
    file = landed(tmp_path, "roses/broken.png", b"not an image", 1)
    append(
        tables_at(tmp_path / "home" / "tables"),
        IMAGE_FILES,
        [{**file, "state": "quarantined", "reason": "not_an_image"}],
    )
    with served(tmp_path / "home", tmp_path) as address:
        page = get(address)[2]
        assert b"No current files" in page
        assert b"No images yet" not in page
        assert b"1 quarantined" in page
        assert "/?state=quarantined" in Parsed(page).links("/?")
        assert b"<strong>1</strong> of 1 quarantined files" in get(f"{address}/?state=current&reason=not_an_image")[2]


def test_an_image_whose_bytes_are_gone_gets_a_placeholder_that_is_not_cached(own_home: SmallHome) -> None:
    content = png(55)
    file = landed(own_home.landing, "roses/gone.png", content, 1)
    append(own_home.delta_tables, IMAGE_FILES, [file])
    append(own_home.delta_tables, FEATURED_IMAGES, [{**featured(file, content, own_home.landing), "content": None}])
    (own_home.landing / "roses" / "gone.png").unlink()
    with served(own_home.home, own_home.landing) as address:
        status, headers, picture = get(f"{address}/images/{file['image_id']}/thumbnail")
    assert (status, headers["cache-control"], picture[1:4]) == (404, "no-store", b"PNG")


def test_the_page_of_an_image_has_everything_in_the_tables(own_home: SmallHome) -> None:
    delta_tables, image = own_home.delta_tables, own_home.images[4]
    former = {**featured({**image, "image_id": "f" * 64}, png(80), own_home.landing), "path": image["path"]}
    append(delta_tables, FEATURED_IMAGES, [former])
    copy = landed(own_home.landing, "roses/copy.png", image["content"], 2)
    append(delta_tables, IMAGE_FILES, [copy])
    append(delta_tables, FEATURED_IMAGES, [featured(copy, image["content"], own_home.landing)])
    follow_featured_images(delta_tables, color_network(own_home.home))
    tags = {"labels": '["roses", "tulips"]', "table_versions": '{"image_splits": 7}', "framework": "torch"}
    models = [ModelVersion(1, "Production", (), "", "models:/m/1", tags), ModelVersion(2, "None", (), "", "", {})]
    index = own_home.index(models)
    embeddings = LiveEmbeddings(delta_tables)
    found = image_page(index, delta_tables, embeddings, {"path": image["path"]})
    assert found is not None
    assert [(prediction["version"], prediction["label"]) for prediction in found["predictions"]] == [
        (2, "tulips"),
        (1, "roses"),
    ]
    assert found["probabilities"]["columns"] == {1: pytest.approx({"roses": 0.54, "tulips": 0.46})}
    assert found["trained_on"] == {1: "image_splits v7", 2: "unknown"}
    assert [content["image_id"] for content in found["former_contents"]] == ["f" * 64]
    assert [other["path"] for other in found["exact_copies"]] == [copy["path"]]
    assert len(found["nearest_by_embedding"]) == 12
    assert found["embedded_by"] == "colors (numpy)"
    assert all(other["similarity"] <= 1 for other in found["nearest_by_embedding"])
    late = landed(own_home.landing, "roses/late.png", png(90), 3)
    append(delta_tables, IMAGE_FILES, [late])
    append(delta_tables, FEATURED_IMAGES, [featured(late, png(90), own_home.landing)])
    other = image_page(own_home.index(models), delta_tables, embeddings, {"path": late["path"]})
    assert other is not None
    assert other["nearest_by_embedding"] is None
    assert other["nearest_by_hash"]
