"""Images that a table names land once, under their labels; what cannot be fetched is a row with a reason."""

import shutil
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pyarrow as pa
import pytest

from image_assets.data.fetched_images import (
    FetchConfig,
    FetchOutcome,
    fetch,
    fetched_images,
    former_urls,
    merge_outcomes,
    read_table,
    to_sources,
)
from image_assets.schemas import FETCHED_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import read_content
from resources.files.image_folder import PART_PREFIX, ImageFolder
from resources.files.remote_files import RemoteFiles, redacted
from tests.support.image_server import ImageServer, image_server
from tests.support.images import jpeg, png, put
from tests.support.landing import list_files
from tests.support.permissions import obeying_modes
from tests.support.s3_server import BUCKET, s3_server

SECRET = "a-token-that-nobody-may-see"
NAMES = ImageFolder(root="/landing").name_filter()


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as served:
        served.images = {"/a/rose.png": png(1), "/b/rose.png": png(2), "/photo": jpeg(3), "/page.png": b"<html>"}
        yield served


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("https://example.com/a.png?id=3", "https://example.com/a.png?id=3"),
        ("https://example.com/a.png?id=3&token=x&Sig=y#z", "https://example.com/a.png?id=3&token=…&Sig=…"),
        ("https://b.s3/a.png?X-Amz-Date=1&X-Amz-Signature=2", "https://b.s3/a.png?X-Amz-Date=…&X-Amz-Signature=…"),
        ("https://me:secret@example.com/a.png", "https://example.com/a.png"),
        (
            "https://example.com/a?accessToken=1&api_key=2&size=3",
            "https://example.com/a?accessToken=…&api_key=…&size=3",
        ),
        ("https://example.com/a?AWSAccessKeyId=1&SIGNATURE=2", "https://example.com/a?AWSAccessKeyId=…&SIGNATURE=…"),
        ("https://example.com/a?apikey=1&sid=2&pass%77ord=3", "https://example.com/a?apikey=…&sid=2&pass%77ord=…"),
        ("s3://bucket/a?b#1.png", "s3://bucket/a?b#1.png"),
        ("s3://me:secret@bucket/a?b#1.png", "s3://bucket/a?b#1.png"),
        ("ftp://example.com/a.png?token=b", "ftp://example.com/a.png?token=…"),
        ("/photos/a#1.png", "/photos/a#1.png"),
    ],
)
def test_an_address_is_shown_without_what_nobody_may_see(address: str, url: str) -> None:
    assert redacted(address) == url


@pytest.mark.parametrize(
    "name",
    [
        *("clientsecret", "refreshtoken", "idtoken", "sastoken", "apisecret", "userpassword", "appkey", "APIkey"),
        *("app.key", "clientTokens", "awsaccesskeyid", "licenseKey", "privatekey", "userpasswd", "db_pwd", "jwt"),
    ],
)
def test_the_value_of_a_parameter_named_like_a_secret_is_not_shown(name: str) -> None:
    assert redacted(f"https://example.com/a?{name}=1") == f"https://example.com/a?{name}=…"


@pytest.mark.parametrize(
    "name", ["design", "keyword", "author", "authuser", "monkey", "keyframe", "pass", "assignee", "tokenizer"]
)
def test_the_value_of_any_other_parameter_is_shown(name: str) -> None:
    assert redacted(f"https://example.com/a?{name}=1") == f"https://example.com/a?{name}=1"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"url": "https://me:pw@example.com/a.png"}, "password"),
        ({"url": "https://me:pw@[example.com/a.png"}, "bad_address"),
        ({"url": "", "label": "roses"}, "bad_address"),
        ({"url": "https://example.com/a.png", "label": "../roses"}, "bad_label"),
        ({"url": "https://example.com/a.png", "label": ".roses"}, "bad_name"),
        ({"url": "https://example.com/a.png", "label": "thumbnails"}, "bad_name"),
        ({"url": "https://example.com/a.png", "name": "../a.png"}, "bad_name"),
        ({"url": "https://example.com/a.png", "name": ".a.png"}, "bad_name"),
        ({"url": "https://example.com/a.png", "name": "a" * 251}, "bad_name"),
        ({"url": "https://example.com/a.png", "name": "花" * 84}, "bad_name"),
    ],
)
def test_a_row_that_names_nothing_to_fetch_is_refused(row: dict[str, str], reason: str) -> None:
    table = pa.Table.from_pylist([{"url": "", "label": None, "name": None, **row}])
    sources, refused, _ = to_sources(table, NAMES)
    assert sources == []
    ((url, error),) = refused.items()
    assert error.reason == reason
    assert "pw" not in url + error.message


def test_addresses_that_differ_in_secrets_only_are_one_image_and_counted() -> None:
    names = [f"https://example.com/a.png?{query}" for query in ("design=1", "design=2", "token=1", "token=2")]
    sources, _, left_out = to_sources(pa.table({"url": [*names, names[0]]}), NAMES)
    assert sorted(source.address for source in sources) == names[:3]
    assert left_out == 1


class Home:
    """A landing folder, and a table of addresses."""

    def __init__(self, home: Path, delta_tables: DeltaTables) -> None:
        self.table, self.landing, self.tables = home / "images.csv", home / "landing", delta_tables
        home.mkdir(parents=True, exist_ok=True)

    def fetch(self, *rows: tuple[str, str, str], **config: object) -> dict[str, object]:
        """The metadata of the run: how many images were fetched, unchanged or failed."""
        self.table.write_text("".join(f"{','.join(row)}\n" for row in [("url", "label", "name"), *rows]))
        resources = {"delta_tables": self.tables, "image_folder": ImageFolder(root=str(self.landing), settle_seconds=0)}
        settings = {"table": str(self.table), "private_addresses": True, "attempts": 1, **config}
        run = dg.materialize(
            [fetched_images],
            resources=resources,
            run_config=dg.RunConfig(ops={"fetched_images": FetchConfig(**settings)}),  # pyright: ignore[reportArgumentType] - values of several types
            instance=dg.DagsterInstance.ephemeral(),
        )
        (made,) = run.asset_materializations_for_node("fetched_images")
        counted = {name: value.value for name, value in made.metadata.items()}
        counts = ("fetched", "unchanged", "failed", "same_but_for_secrets")
        return {name: count for name, count in counted.items() if name.startswith(counts)}

    def files(self) -> dict[str, bytes]:
        found = {str(file.relative_to(self.landing)): file for file in self.landing.rglob("*") if file.is_file()}
        return {name: file.read_bytes() for name, file in sorted(found.items())}

    def rows(self) -> dict[str, dict]:
        rows = self.tables.read(FETCHED_IMAGES, FETCHED_IMAGES.columns.fieldNames()).to_pylist()
        return {row["url"]: row for row in rows}


@pytest.fixture
def filled(home: Path, delta_tables: DeltaTables, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home on a machine that allows everything."""
    monkeypatch.setenv("IMAGE_ASSETS_FETCH_ALLOW", "private_addresses, local_files")
    return Home(home, delta_tables)


def test_images_land_under_their_labels_and_a_second_run_fetches_what_changed(
    filled: Home, server: ImageServer
) -> None:
    rows = [
        (f"{server.address}/a/rose.png", "roses", ""),
        (f"{server.address}/b/rose.png", "roses", ""),
        (f"{server.address}/photo?id=7&token={SECRET}", "", "portrait"),
        (f"{server.address}/none.png", "roses", ""),
        (f"{server.address}/page.png", "roses", ""),
    ]
    assert filled.fetch(*rows) == {"fetched": 3, "unchanged": 0, "failed_not_found": 1, "failed_not_an_image": 1}
    names = list(filled.files())
    assert [name.partition("-")[0] for name in names] == ["portrait.jpeg", "roses/rose", "roses/rose"]
    assert sorted(filled.files().values()) == sorted([png(1), png(2), jpeg(3)])
    assert SECRET not in str(filled.rows())
    listed = {file.path for file in list_files(ImageFolder(root=str(filled.landing)))}
    assert {row["path"] for row in filled.rows().values() if row["state"] == "fetched"} == listed

    version, times = (
        filled.tables.newest_version(FETCHED_IMAGES),
        [(filled.landing / name).stat().st_mtime_ns for name in names],
    )
    again = filled.fetch(*rows)
    assert again == {"fetched": 0, "unchanged": 3, "failed_not_found": 1, "failed_not_an_image": 1}
    assert filled.tables.newest_version(FETCHED_IMAGES) == version, "nothing is written where nothing changed"
    assert [(filled.landing / name).stat().st_mtime_ns for name in names] == times
    assert server.statuses_of("/a/rose.png") == [200, 304]

    server.images |= {"/a/rose.png": png(11), "/none.png": png(4)}
    del server.images["/b/rose.png"]
    changed = filled.fetch(*rows)
    assert changed == {"fetched": 2, "unchanged": 1, "failed_not_an_image": 1, "failed_not_found": 1}
    assert sorted(filled.files().values()) == sorted([png(11), png(2), jpeg(3), png(4)]), (
        "what is gone there stays here"
    )
    assert filled.rows()[rows[1][0]]["reason"] == "not_found"
    server.images["/b/rose.png"] = png(2)
    assert filled.fetch(*rows)["unchanged"] == 4
    assert filled.rows()[rows[1][0]]["state"] == "fetched"
    assert filled.fetch(*rows[:2]) == {"fetched": 0, "unchanged": 2}
    assert filled.rows()[rows[4][0]]["state"] == "unnamed"
    assert len(filled.files()) == 4


def test_images_left_out_for_equal_addresses_are_reported(filled: Home, server: ImageServer) -> None:
    rows = [(f"{server.address}/a/rose.png?{query}", "roses", "") for query in ("v=1", "v=2", "key=1", "key=2")]
    assert filled.fetch(*rows) == {"fetched": 3, "unchanged": 0, "same_but_for_secrets": 1}


def test_results_of_earlier_versions_are_found_under_the_addresses_that_those_stored(
    filled: Home, server: ImageServer
) -> None:
    filled.tables.create(FETCHED_IMAGES)
    for file, path, content in (
        ("roses/one.png", "a/rose.png?authuser=…", png(1)),
        ("x.png", "photo?keyword=…", jpeg(3)),
    ):
        put(filled.landing, file, content)
        where = f"{ImageFolder(root=str(filled.landing)).path}/{file}"
        image_id = sha256(content).hexdigest()
        outcome = FetchOutcome(f"{server.address}/{path}", "fetched", path=where, image_id=image_id)
        merge_outcomes(filled.tables, [outcome], {})
    rows = [
        (f"{server.address}/a/rose.png?authuser=0", "roses", "one.png"),
        (f"{server.address}/photo?keyword=a", "", ""),
    ]
    assert filled.fetch(*rows) == {"fetched": 1, "unchanged": 1}
    assert sorted(filled.files().values()) == sorted([png(1), jpeg(3)]), "the file with the former name is gone"
    states = {url[-1]: (row["state"], bool(row["path"])) for url, row in filled.rows().items()}
    assert states == {"0": ("fetched", True), "a": ("fetched", True), "…": ("unnamed", False)}
    server.images["/a/rose.png"] = png(11)
    assert filled.fetch(*rows) == {"fetched": 1, "unchanged": 1}
    assert filled.files()["roses/one.png"] == png(11)


def test_a_result_of_an_earlier_version_that_several_addresses_share_belongs_to_none() -> None:
    previous = {"https://example.com/a?author=…": FetchOutcome("https://example.com/a?author=…")}
    sources, _, _ = to_sources(pa.table({"url": [f"https://example.com/a?author={name}" for name in "xy"]}), NAMES)
    assert former_urls(previous, sources[:1]) == {sources[0].url: "https://example.com/a?author=…"}
    assert former_urls(previous, sources) == {}


def test_another_label_moves_the_file_and_one_that_was_deleted_comes_again(filled: Home, server: ImageServer) -> None:
    address = f"{server.address}/a/rose.png"
    filled.fetch((address, "roses", "one.png"))
    assert filled.fetch((address, "tulips", "one.png"))["fetched"] == 1
    assert list(filled.files()) == ["tulips/one.png"]
    (filled.landing / "tulips/one.png").unlink()
    assert filled.fetch((address, "tulips", "one.png"))["fetched"] == 1
    assert list(filled.files()) == ["tulips/one.png"]


def test_files_of_a_run_that_was_killed_before_its_commit_are_taken_over(filled: Home, server: ImageServer) -> None:
    rows = [(f"{server.address}/{name}/rose.png", "roses", name * 2) for name in "ab"]
    filled.fetch(*rows)
    before = filled.files()
    shutil.rmtree(filled.tables.root)
    assert filled.fetch(*rows) == {"fetched": 2, "unchanged": 0}
    assert filled.files() == before
    assert filled.fetch(*rows) == {"fetched": 0, "unchanged": 2}


def test_nothing_lands_that_a_listing_would_skip(filled: Home, server: ImageServer) -> None:
    server.images["/without_suffix"] = png(4)
    folder = ImageFolder(root=str(filled.landing), include=["*.jp*g"], exclude=["drafts"])
    labels = {"/photo": "roses", "/without_suffix": "roses", "/a/rose.png": "roses", "/photo?2": "drafts"}
    rows = pa.table({"url": [f"{server.address}{path}" for path in labels], "label": [*labels.values()]})
    files = RemoteFiles(10**6, 5, private_addresses=True)
    counts = fetch(filled.tables, folder, files, rows, 2, dg.get_dagster_logger())
    assert counts == {"fetched": 1, "failed_bad_name": 3}
    assert len(filled.files()) == len(list_files(folder)) == 1
    assert len(server.asked) == 2, "of the other two, the names alone say it"
    messages = {url.rpartition("/")[2]: row["message"] for url, row in filled.rows().items()}
    assert "which IMAGE_ASSETS_INCLUDE does not match: choose" in messages["without_suffix"]
    assert "because of drafts: choose" in messages["photo?2"]


def test_a_file_of_somebody_else_is_never_written_over(filled: Home, server: ImageServer) -> None:
    put(filled.landing, "roses/mine.png", png(50))
    (filled.landing / "elsewhere").mkdir()
    (filled.landing / "link").symlink_to(filled.landing / "elsewhere")
    counts = filled.fetch(
        (f"{server.address}/a/rose.png", "roses", "mine.png"),
        (f"{server.address}/b/rose.png", "roses", "theirs"),
        (f"{server.address}/photo", "link", "a.jpg"),
        (f"{server.address}/page.png", "roses", "x"),
        (f"{server.address}/page.png", "tulips", "x"),
    )
    failed = {"failed_name_taken": 1, "failed_not_written": 1, "failed_contradictory": 1}
    assert counts == {"fetched": 1, "unchanged": 0, **failed}
    assert filled.files() == {"roses/mine.png": png(50), "roses/theirs.png": png(2)}


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a" * 120, "a" * 100), ("花" * 80, "花" * 80), ("花" * 90, "花" * 80), ("a" + "花" * 90, "a" + "花" * 79)],
)
def test_a_long_name_is_cut_to_what_file_systems_store(filled: Home, server: ImageServer, name: str, stem: str) -> None:
    path = f"/{quote(name)}.png"
    server.images |= {path: png(4)}
    rows = [(f"{server.address}{path}", "roses", ""), (f"{server.address}/a/rose.png", "roses", "花" * 83)]
    assert filled.fetch(*rows) == {"fetched": 2, "unchanged": 0}
    (landed,) = (file for file in filled.files() if "-" in file)
    assert landed.removeprefix("roses/").rpartition("-")[0] == stem
    assert filled.fetch(*rows) == {"fetched": 0, "unchanged": 2}


@pytest.mark.parametrize("fails_first", [False, True])
def test_an_image_whose_url_changes_keeps_its_name(filled: Home, server: ImageServer, fails_first: bool) -> None:
    before, after, third = (f"{server.address}{path}" for path in ("/a/rose.png", "/b/rose.png", "/photo"))
    filled.fetch((before, "roses", "first.png"))
    if fails_first:
        del server.images["/a/rose.png"]
        filled.fetch((before, "roses", "first.png"))
    for url, content in ((after, png(2)), (third, jpeg(3))):
        assert filled.fetch((url, "roses", "first.png")) == {"fetched": 1, "unchanged": 0}
        assert filled.files() == {"roses/first.png": content}
    states = {url: (row["state"], bool(row["path"])) for url, row in filled.rows().items()}
    assert states == {before: ("unnamed", False), after: ("unnamed", False), third: ("fetched", True)}
    assert filled.fetch((third, "roses", "first.png")) == {"fetched": 0, "unchanged": 1}
    put(filled.landing, "roses/first.png", png(50))
    assert filled.fetch((after, "roses", "first.png")) == {"fetched": 0, "unchanged": 0, "failed_name_taken": 1}
    assert filled.files() == {"roses/first.png": png(50)}, "a file that somebody put there stays"


def test_a_folder_that_cannot_be_written_to_costs_its_own_images_only(filled: Home, server: ImageServer) -> None:
    rows = [(f"{server.address}/a/rose.png", "roses", "a"), (f"{server.address}/b/rose.png", "roses", "b")]
    filled.fetch(rows[0])
    (filled.landing / "roses").chmod(0o000)
    try:
        with obeying_modes():
            counts = filled.fetch(*rows, (f"{server.address}/photo", "tulips", "c"))
    finally:
        (filled.landing / "roses").chmod(0o755)
    assert counts == {"fetched": 1, "unchanged": 0, "failed_not_written": 2}
    assert filled.fetch(*rows) == {"fetched": 1, "unchanged": 1}


def test_many_images_come_at_the_same_time_and_a_slow_one_costs_itself_only(filled: Home, server: ImageServer) -> None:
    server.images |= {f"/many/{number}.png": png(number) for number in range(40)}
    server.slow = {"/many/0.png"}
    rows = [(f"{server.address}/many/{number}.png", "", "") for number in range(40)]
    started = time.monotonic()
    assert filled.fetch(*rows, seconds=2, at_once=4) == {"fetched": 39, "unchanged": 0, "failed_timeout": 1}
    assert time.monotonic() - started < 20
    assert len(filled.files()) == 39


def test_what_a_killed_run_left_is_removed_and_never_taken_in(filled: Home, server: ImageServer) -> None:
    part = put(filled.landing, f"roses/{PART_PREFIX}0123", png(1)[:20])
    everything = ImageFolder(root=str(filled.landing), include=["*"], settle_seconds=0)
    assert list_files(everything) == []
    filled.fetch((f"{server.address}/a/rose.png", "roses", ""))
    assert not part.exists()
    assert len(list_files(everything)) == 1


@pytest.mark.parametrize(
    ("content", "error"),
    [("address,label\n", "has no address column: add a column url or path"), (None, "does not exist: expected a file")],
)
def test_a_table_that_names_no_images_is_refused(filled: Home, content: str | None, error: str) -> None:
    if content:
        filled.table.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        dg.materialize(
            [fetched_images],
            resources={"delta_tables": filled.tables, "image_folder": ImageFolder(root=str(filled.landing))},
            run_config=dg.RunConfig(ops={"fetched_images": FetchConfig(table=str(filled.table))}),
        )


@pytest.mark.parametrize("table", ["http://10.0.0.5/a.csv", "s3://bucket/a.csv::http://10.0.0.5/a.csv", "zip::/a.csv"])
def test_the_table_is_on_disk_or_s3(table: str) -> None:
    with pytest.raises(ValueError, match="expected a local path or s3://…, without ::"):
        read_table(table)


def test_paths_of_this_machine_are_copied_where_that_is_allowed(filled: Home, tmp_path: Path) -> None:
    file = put(tmp_path, "camera/a#1.png", png(7))
    assert filled.fetch((str(file), "roses", "")) == {"fetched": 0, "unchanged": 0, "failed_local_file": 1}
    assert filled.fetch((str(file), "roses", ""), local_files=True) == {"fetched": 1, "unchanged": 0}
    assert list(filled.files().values()) == [png(7)]


@pytest.mark.parametrize(
    ("allowed", "config"),
    [("", {}), ("", {"local_files": True, "private_addresses": False}), ("private_addresses", {"local_files": True})],
)
def test_a_run_config_alone_opens_neither_this_machine_nor_its_network(
    filled: Home, server: ImageServer, monkeypatch: pytest.MonkeyPatch, allowed: str, config: dict[str, bool]
) -> None:
    monkeypatch.setenv("IMAGE_ASSETS_FETCH_ALLOW", allowed)
    with pytest.raises(ValueError, match=r"this machine does not allow: remove it, or add \w+ to IMAGE_ASSETS_FETCH_A"):
        filled.fetch((f"{server.address}/a/rose.png", "roses", ""), **config)
    assert server.asked == []


def test_images_land_in_a_bucket(
    delta_tables: DeltaTables, server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files = ImageFolder(root=f"s3://{BUCKET}/photos"), RemoteFiles(10**6, 5, private_addresses=True)

    def fetched(label: str) -> dict[str, int]:
        rows = pa.table({"url": [f"{server.address}/a/rose.png"], "label": [label], "name": ["100%.png"]})
        return dict(fetch(delta_tables, folder, files, rows, 2, dg.get_dagster_logger()))

    with s3_server() as variables:
        for name, value in {**variables, "AWS_MAX_ATTEMPTS": "1"}.items():
            monkeypatch.setenv(name, value)
        assert [fetched(label) for label in ("roses", "roses", "tulips")] == [
            {"fetched": 1},
            {"unchanged": 1},
            {"fetched": 1},
        ]
        (file,) = list_files(folder)
        assert read_content(file.path, length=file.length) == png(1)
        (row,) = delta_tables.read(FETCHED_IMAGES, ["path", "image_id"]).to_pylist()
        assert row["path"] == file.path == f"s3://{BUCKET}/photos/tulips/100%25.png"

        server.images = {f"/{number}.png": png(number) for number in range(24)}
        many = pa.table({"url": [f"{server.address}{path}" for path in server.images]})
        assert fetch(delta_tables, folder, files, many, 8, dg.get_dagster_logger()) == {"fetched": 24}
        assert len(list_files(folder)) == 25, "whatever was written at the same time"
    assert fetched("tulips") == {"failed_not_written": 1}, "the bucket no longer answers"
