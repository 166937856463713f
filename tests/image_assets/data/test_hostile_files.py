"""Whatever a file holds, no run fails: it is current, or quarantined with the true reason."""

import math
import os
import resource
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import cast

import dagster as dg
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from image_assets.data.featured_images import featured_images
from image_assets.data.grayscale_images import grayscale_images
from image_assets.data.image_files import read_ledger
from image_assets.data.inspection import CURRENT, decode_features, inspect_file
from image_assets.data.raw_images import raw_images
from image_assets.images.isolated_process import GuardedProcess, ItemFailure
from image_assets.images.large_images import Limits
from image_assets.schemas import FEATURED_IMAGES, GRAYSCALE_IMAGES, IMAGE_FILES, RAW_IMAGES
from resources.delta.delta_tables import DeltaTables
from resources.delta.spark_session import DeltaSpark
from resources.files.file_system import to_path
from resources.files.image_folder import ImageFolder
from tests.conftest import tables_in
from tests.support.image_files import dicom
from tests.support.images import jpeg, picture, png, png_of_many_pixels, put

PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "flowers_original"
MEMORY_BYTES = 160 * 1024**2
SECONDS = 3


def saved(image: Image.Image, name: str, **options: object) -> bytes:
    content = BytesIO()
    image.save(content, name, **options)
    return content.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def zeros(length: int) -> bytes:
    """That many zero bytes, deflated; the same block again and again."""
    deflate, piece = zlib.compressobj(9), bytes(1 << 20)
    first = deflate.compress(piece) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(piece) + deflate.flush(zlib.Z_FULL_FLUSH)
    count, rest = divmod(length - len(piece), len(piece))
    last = deflate.compress(bytes(rest)) + deflate.flush()
    checksum = struct.pack(">I", length % 65521 << 16 | 1)
    return first + block * count + last[:-4] + checksum


def black_png(width: int, height: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A whole PNG of zeros, with further chunks before and after its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zeros(max(1 << 20, (3 * width + 1) * height)))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header promises another size."""
    content = bytearray(jpeg(1))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    content = saved(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + b"\xff\xd9"


def ycck() -> bytes:
    """A JPEG of four colors whose Adobe marker says that they are luminance, chrominance and black."""
    content = bytearray(saved(picture(3).convert("CMYK"), "JPEG"))
    content[content.index(b"Adobe") + 11] = 2
    return bytes(content)


def gif_of_frames(frames: int) -> bytes:
    """A GIF whose one frame comes again and again."""
    content = saved(picture(1, (16, 16)).convert("P"), "GIF")
    start = content.index(b"\x2c", 13 + 3 * 2 ** ((content[10] & 7) + 1))
    return content[:start] + content[start:-1] * frames + b"\x3b"


def tiff(*entries: tuple[int, int, int, int], next_directory: int = 0) -> bytes:
    """A TIFF of one directory: tag, type, count and value of each entry, and where the next directory is."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", next_directory)


TEXT = zeros(200 << 20)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_16 = Image.fromarray(np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16))
GRAY_PIXELS = [(256, 3, 1, 48), (257, 3, 1, 32), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0)]


LEVELS = np.linspace(0, 1000, 48 * 32).reshape(32, 48).astype(np.uint16)
END_OF_TIME = {36867: "9999:12:31 23:59:59", 37521: "9999999"}


def exif(orientation: int, details: dict[int, str] | None = None) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags.get_ifd(0x8769).update(details or {})
    return tags


def tagged_tiff(tag: int, kind: str, value: float) -> bytes:
    """A TIFF of floats with one more tag."""
    content = BytesIO()
    tifffile.imwrite(
        content, LEVELS.astype(np.float64), photometric="minisblack", extratags=[(tag, kind, 1, value, True)]
    )
    return content.getvalue()


# For each file what it holds, and the reason why it is quarantined; None where it is current.
CASES: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "baseline.jpg": (lambda: jpeg(1), None),
    "progressive.jpg": (lambda: saved(picture(2), "JPEG", progressive=True), None),
    "cmyk.jpg": (lambda: saved(picture(3).convert("CMYK"), "JPEG"), None),
    "ycck.jpg": (ycck, None),
    "turned.jpg": (lambda: saved(picture(4), "JPEG", exif=exif(6)), None),
    "profile.jpg": (lambda: saved(picture(5), "JPEG", icc_profile=PROFILE), None),
    "camera.jpg": (lambda: saved(picture(6), "MPO", save_all=True, append_images=[picture(7)]), None),
    "true color.png": (lambda: png(8), None),
    "16 bits.png": (lambda: saved(GRAY_16, "PNG"), None),
    "palette.png": (lambda: saved(picture(9).convert("P"), "PNG"), None),
    "alpha.png": (lambda: saved(picture(10).convert("RGBA"), "PNG"), None),
    "profile.png": (lambda: saved(picture(11), "PNG", icc_profile=PROFILE), None),
    "a.webp": (lambda: saved(picture(12), "WEBP"), None),
    "alpha.webp": (lambda: saved(picture(13).convert("RGBA"), "WEBP"), None),
    "a.gif": (lambda: saved(picture(14), "GIF"), None),
    "a.bmp": (lambda: saved(picture(15), "BMP"), None),
    "a.tif": (lambda: saved(picture(16), "TIFF", compression="tiff_lzw"), None),
    "cmyk.tif": (lambda: saved(picture(17).convert("CMYK"), "TIFF"), None),
    "16 bits.tif": (lambda: saved(GRAY_16, "TIFF"), None),
    "wrong suffix.gif": (lambda: png(18), None),
    "taken at the end of time.jpg": (lambda: saved(picture(22), "JPEG", exif=exif(1, END_OF_TIME)), None),
    "turned in no way.tif": (lambda: tagged_tiff(274, "I", 0xFFFFFFFF), None),
    "infinitely white.tif": (lambda: tagged_tiff(341, "d", math.inf), None),
    "infinite window.dcm": (lambda: dicom(LEVELS, WindowCenter="0", WindowWidth="1e400"), None),
    "ten thousand frames.gif": (lambda: gif_of_frames(10_000), None),
    "a thousand scans.jpg": (lambda: jpeg_of_scans(64, 1_000), None),
    "very wide.png": (lambda: black_png(9_000_000, 1), None),
    "very tall.png": (lambda: black_png(1, 9_000_000), None),
    "large, many scans.jpg": (lambda: jpeg_of_scans(5_000, 50_000), "timeout"),
    "more memory than allowed.png": (png_of_many_pixels, "out_of_memory"),
    "901 million pixels.png": (lambda: black_png(30_016, 30_016), "too_many_pixels"),
    "60,000 x 60,000.jpg": (lambda: jpeg_of_size(60_000, 60_000), "too_many_pixels"),
    "60,000 x 60,000.tif": (
        lambda: tiff((256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)),
        "too_many_pixels",
    ),
    "zTXt bomb.png": (lambda: black_png(8, 8, before=chunk(b"zTXt", b"a\0\0" + TEXT)), "decompression_bomb"),
    "iTXt bomb.png": (lambda: black_png(8, 8, before=chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT)), "decompression_bomb"),
    "iCCP bomb.png": (lambda: black_png(8, 8, before=chunk(b"iCCP", b"a\0\0" + TEXT)), "decompression_bomb"),
    "late text bomb.png": (lambda: black_png(8, 8, after=chunk(b"zTXt", b"a\0\0" + TEXT)), "decompression_bomb"),
    "absurd tag.tif": (lambda: tiff(*GRAY_PIXELS, (34675, 7, 0xFFFFFFF0, 8)), "undecodable"),
    "endless directories.tif": (lambda: tiff(*GRAY_PIXELS, (34665, 4, 1, 8), next_directory=8), "undecodable"),
    "cut short.jpg": (lambda: jpeg(19)[:-200], "undecodable"),
    "cut short.png": (lambda: png(20)[:-300], "undecodable"),
    "cut short.webp": (lambda: saved(picture(21), "WEBP")[:-100], "undecodable"),
    "beginning only.jpg": (lambda: b"\xff\xd8\xff", "undecodable"),
    "sound.webp": (lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(20), "not_an_image"),
    "nearly.png": (lambda: b"\x89PNG\n\n\x1a\n" + bytes(50), "not_an_image"),
    "page.jpg": (lambda: b"<html></html>", "not_an_image"),
    "empty.png": (lambda: b"", "empty"),
    "too large.bmp": (lambda: b"BM" + bytes(8_000_000), "too_large"),
}


def run_through(delta_spark: DeltaSpark, home: Path, image_folder: ImageFolder) -> DeltaTables:
    """The folder's files, taken through the tables by one Dagster run."""
    delta_tables = tables_in(home, delta_spark)
    run = dg.materialize(
        [raw_images, featured_images, grayscale_images],
        resources={"delta_tables": delta_tables, "image_folder": image_folder},
        instance=dg.DagsterInstance.ephemeral(),
    )
    assert run.success
    return delta_tables


@pytest.fixture(scope="module")
def hostile(delta_spark: DeltaSpark, tmp_path_factory: pytest.TempPathFactory) -> DeltaTables:
    """Every case in one landing folder, gone through the tables."""
    home = tmp_path_factory.mktemp("hostile")
    for name, (content, _) in CASES.items():
        put(home / "landing", name, content())
    image_folder = ImageFolder(
        root=str(home / "landing"),
        settle_seconds=0,
        size_limit_bytes=6_000_000,
        decode_seconds=SECONDS,
        decode_memory_bytes=MEMORY_BYTES,
    )
    return run_through(delta_spark, home, image_folder)


@pytest.fixture(scope="module")
def ledger(hostile: DeltaTables) -> dict[str, tuple[str, str | None, str]]:
    """State, reason and message of each file, by name."""
    rows = hostile.dataframe(IMAGE_FILES).collect()
    return {Path(row.path).name: (row.state, row.reason, row.message) for row in rows}


@pytest.mark.spark
@pytest.mark.parametrize("name", CASES)
def test_a_file_is_current_or_quarantined_with_the_true_reason(
    ledger: dict[str, tuple[str, str | None, str]], name: str
) -> None:
    state, reason, message = ledger[name]
    assert (reason, message if reason is None else None) == (CASES[name][1], None), message
    assert state == (CURRENT if CASES[name][1] is None else "quarantined")
    if reason:
        assert any(remedy in message for remedy in (";", ": copy", ": make", ": save", ": re-save")), message


@pytest.mark.spark
def test_every_current_file_is_featured_and_gray(hostile: DeltaTables) -> None:
    current = {name for name, (_, reason) in CASES.items() if reason is None}
    for table in (FEATURED_IMAGES, GRAYSCALE_IMAGES):
        assert {Path(row.path).name for row in hostile.dataframe(table).select("path").collect()} == current
    found = {Path(row.path).name: row for row in hostile.dataframe(FEATURED_IMAGES).drop("content").collect()}
    assert found["turned.jpg"].orientation == 6
    assert found["camera.jpg"].format == "JPEG"
    assert found["wrong suffix.gif"].format == "PNG"
    assert found["a thousand scans.jpg"].width == 64
    assert found["turned in no way.tif"].orientation == 1
    assert found["infinitely white.tif"].white_value == 1023
    assert found["infinite window.dcm"].white_value == 65535


def peak(image: dict) -> tuple[object, int]:
    """The whole look, and how much memory it took on top of what the process held before, in bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = decode_features(image)
    return found, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.mark.parametrize("name", [name for name in CASES if "pixels" in name or "bomb" in name or "60" in name])
def test_a_bomb_takes_less_memory_than_the_bound(name: str) -> None:
    image = {"path": name, "content": CASES[name][0]()}
    with GuardedProcess(peak, memory_bytes=MEMORY_BYTES) as guarded:
        answer = guarded.run(image, cpu_seconds=30)
    assert isinstance(answer, tuple)
    assert isinstance(answer[0], ItemFailure)
    assert answer[1] < MEMORY_BYTES


def test_a_file_that_is_written_while_it_is_read_is_pending(tmp_path: Path) -> None:
    file = put(tmp_path, "a.png", png(1))
    path = to_path(os.fsencode(file))
    for limits in (Limits(), Limits(content_bytes=10)):
        assert inspect_file(path, len(png(1)) - 1, limits).state == "pending"
        assert inspect_file(path, len(png(1)), limits).state == CURRENT


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The content cut short, or with a few bits flipped."""
    if random.random() < 0.5:
        return content[: random.integers(len(content))]
    flipped = bytearray(content)
    for place in random.integers(len(content), size=random.integers(1, 20)):
        flipped[place] ^= 1 << int(random.integers(8))
    return bytes(flipped)


@pytest.mark.spark
@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="no photographs in ../shared/data/flowers_original")
def test_damaged_photographs_fail_no_run_and_change_no_good_row(delta_spark: DeltaSpark, tmp_path: Path) -> None:
    photographs = [file.read_bytes() for file in sorted(PHOTOGRAPHS.glob("*/*"))]
    random = np.random.default_rng(4)
    rows = {}
    for home, damages in (("clean", 0), ("damaged", 1_000)):
        landing = tmp_path / home / "landing"
        for number, content in enumerate(photographs[:50]):
            put(landing, f"good/{number}.jpg", content)
        for number in range(damages):
            put(landing, f"bad/{number}.jpg", damaged(photographs[number % len(photographs)], random))
        delta_tables = run_through(delta_spark, tmp_path / home, ImageFolder(root=str(landing), settle_seconds=0))
        known = read_ledger(delta_tables)
        assert len(known) == 50 + damages
        true = {"undecodable", "not_an_image", "empty", "too_many_pixels", "out_of_memory", "timeout"}
        assert {one.state for one in known.values()} <= {CURRENT, "quarantined"}
        assert {one.reason for path, one in known.items() if one.state != CURRENT} <= true
        good = (
            delta_tables.dataframe(FEATURED_IMAGES)
            .where("label = 'good'")
            .drop("path", "label_index", "modification_time")
        )
        rows[home] = {row.image_id: row for row in good.collect()}
        assert len(rows[home]) == 50
    assert rows["clean"] == rows["damaged"]


def distance(left: str, right: str) -> int:
    return (int(left, 16) ^ int(right, 16)).bit_count()


@pytest.mark.spark
def test_above_the_content_limit_rows_hold_the_path_and_features_are_read_from_it(
    delta_spark: DeltaSpark, tmp_path: Path
) -> None:
    landing = tmp_path / "with" / "landing"
    files = sorted(PHOTOGRAPHS.glob("*/*"))[:20] if PHOTOGRAPHS.is_dir() else []
    contents = {file.name: file.read_bytes() for file in files} | {
        "a [1] #%20.png": png(1, (480, 320)),
        "a.bmp": saved(picture(2, (480, 320)), "BMP"),
        "a.gif": saved(picture(3, (480, 320)), "GIF"),
        "a.tif": saved(picture(4, (480, 320)), "TIFF"),
        "a.webp": saved(picture(5, (480, 320)), "WEBP"),
        "turned.jpg": saved(picture(6, (480, 320)), "JPEG", exif=exif(6)),
    }
    for name, content in contents.items():
        put(landing, name, content)
    put(landing, "cut short.jpg", saved(picture(7, (480, 320)), "JPEG")[:-2000])
    put(landing, "many pixels.png", black_png(12_800, 12_800))
    found = {}
    for home, limit in (("with", 1 << 29), ("without", 1)):
        image_folder = ImageFolder(root=str(landing), settle_seconds=0, content_limit_bytes=limit)
        delta_tables = run_through(delta_spark, tmp_path / home, image_folder)
        found[home] = {row.image_id: row for row in delta_tables.dataframe(FEATURED_IMAGES).collect()}
        known = {Path(path).name: one for path, one in read_ledger(delta_tables).items()}
        assert {name: one.reason for name, one in known.items() if one.reason} == {"cut short.jpg": "undecodable"}
    assert all(row.content is None for row in delta_tables.dataframe(RAW_IMAGES).collect())
    assert len(found["with"]) == len(contents) + 1
    for image_id, row in found["with"].items():
        other = found["without"][image_id]
        for name in ("width", "height", "mode", "format", "orientation", "length"):
            assert other[name] == row[name], row.path
        assert distance(other.perceptual_hash, row.perceptual_hash) <= 4, row.path
    for row in delta_tables.dataframe(GRAYSCALE_IMAGES).collect():
        with Image.open(BytesIO(cast("bytes", row.content))) as gray:
            assert gray.mode == "L"
            assert max(gray.size) <= 2048
