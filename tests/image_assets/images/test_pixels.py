"""Images are judged, decoded, turned gray and resized as they should, and broken ones are refused with a reason."""

import pickle
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageOps

from image_assets.images.colors import needs_colors
from image_assets.images.contact_sheets import to_thumbnail
from image_assets.images.features import to_features, to_file_features
from image_assets.images.formats import UnreadableImage
from image_assets.images.grayscale import to_grayscale
from image_assets.images.pictures import OPENERS
from image_assets.images.pixels import MAX_PIXELS, Crop, read_header, to_pixels
from image_assets.models.logged_models import copy_decoding

SIZE = (90, 60)
PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "flowers_original"


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    """Clouds of color, dark above and bright below."""
    patches = np.random.default_rng(5).integers(0, 120, (5, 6, 3)) + np.linspace(0, 135, 5)[:, None, None]
    return Image.fromarray(patches.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, name: str = "PNG", orientation: int = 1, quality: int = 90) -> bytes:
    content, exif = BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(content, name, quality=quality, exif=exif)
    return content.getvalue()


def decoded(content: bytes, mode: str | None = None) -> np.ndarray:
    with Image.open(BytesIO(content)) as image:
        return np.asarray(image.convert(mode) if mode else image).astype(int)


def in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint16))
    return picture().convert("L").convert(mode) if mode == "LA" else picture().convert(mode)


def empty_png(width: int, height: int) -> bytes:
    """A PNG of a header only, which may promise any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


JPEG = encoded(picture(), "JPEG")
BROKEN = [
    pytest.param(b"", "empty", id="empty"),
    pytest.param(b"a text", "not_an_image", id="text"),
    pytest.param(b"<html></html>", "not_an_image", id="html"),
    pytest.param(b"\xff\xd8\xff", "undecodable", id="three bytes of a JPEG"),
    pytest.param(JPEG[: len(JPEG) // 2], "undecodable", id="half a JPEG"),
    pytest.param(encoded(picture())[:-300], "undecodable", id="a PNG cut short"),
    pytest.param(encoded(picture(), "WEBP")[:-300], "undecodable", id="a WebP cut short"),
    pytest.param(empty_png(60_000, 60_000), "too_many_pixels", id="a header of 3.6 billion pixels"),
    pytest.param(empty_png(MAX_PIXELS // 1000 + 1, 1000), "undecodable", id="just too many pixels"),
    pytest.param(empty_png(40, 30), "undecodable", id="a PNG without pixels"),
]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_every_mode_of_png_becomes_gray_of_the_same_size(mode: str) -> None:
    content = encoded(in_mode(mode))
    with Image.open(BytesIO(to_grayscale(content))) as gray:
        assert (gray.mode, gray.size, gray.format) == ("L", SIZE, "PNG")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_gray_of_a_png_is_pillows_gray(mode: str) -> None:
    content = encoded(in_mode(mode))
    assert np.array_equal(decoded(to_grayscale(content)), decoded(content, "L"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (301, 8), (500, 333)])
def test_gray_of_a_jpeg_is_pillows_gray_of_the_same_decode(mode: str, size: tuple[int, int]) -> None:
    content = encoded(picture(size).convert(mode), "JPEG")
    with Image.open(BytesIO(content)) as image:
        image.draft("L", None)
        assert np.array_equal(decoded(to_grayscale(content)), np.asarray(image))


def test_gray_of_a_cmyk_jpeg_is_pillows_gray() -> None:
    content = encoded(in_mode("CMYK"), "JPEG")
    assert to_features(content).mode == "CMYK"
    assert np.array_equal(decoded(to_grayscale(content)), decoded(content, "L"))


def test_sixteen_bits_are_scaled_to_eight_and_not_clipped() -> None:
    gray = decoded(to_grayscale(encoded(in_mode("I;16"))))
    assert (gray[0, 0], gray[-1, -1]) == (0, 255)
    assert 120 < gray.mean() < 135


def test_floating_point_pixels_span_black_to_white() -> None:
    content = BytesIO()
    Image.fromarray(np.linspace(-3, 7, 600, dtype=np.float32).reshape(20, 30)).save(content, "TIFF")
    gray = decoded(to_grayscale(content.getvalue()))
    assert (gray[0, 0], gray[-1, -1]) == (0, 255)


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(name: str) -> None:
    black = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    black.putpixel((0, 0), (0, 0, 0, 255))  # otherwise the file is taken to have no alpha
    assert np.array_equal(to_pixels(encoded(black, name), 8)[1:], np.full((7, 8, 3), 255))


@pytest.mark.parametrize("name", OPENERS)
def test_every_format_is_read(name: str) -> None:
    content = encoded(picture(), name)
    features = to_features(content)
    assert (features.width, features.height, features.format) == (*SIZE, name)
    assert features.decode_warning is None
    assert len(features.perceptual_hash) == 16
    assert to_pixels(content, 20).shape == (20, 20, 3)
    assert to_grayscale(content).startswith(b"\x89PNG")


def test_only_the_first_frame_of_a_gif_is_seen() -> None:
    content = BytesIO()
    Image.new("L", SIZE, 0).save(content, "GIF", save_all=True, append_images=[Image.new("L", SIZE, 255)])
    assert decoded(to_grayscale(content.getvalue())).max() == 0


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_upright_and_the_header_is_as_stored(name: str, orientation: int) -> None:
    upright = picture()
    # What a camera held this way stores: the inverse of how the picture is turned for showing.
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    content = encoded(stored, name, orientation, quality=100)
    header = to_features(content)
    assert (header.width, header.height, header.orientation) == (*stored.size, orientation)
    shown = decoded(to_grayscale(content))
    assert shown.shape == SIZE[::-1]
    assert np.abs(shown - decoded(encoded(upright), "L")).max() < 16
    assert np.abs(to_pixels(content, 24).astype(int) - to_pixels(encoded(upright), 24)).max() < 16
    with Image.open(BytesIO(to_thumbnail(content, 30))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (30, 20))
    assert distance(to_features(content).perceptual_hash, to_features(encoded(upright)).perceptual_hash) <= 4


def test_pixels_are_pillows_antialiased_bilinear() -> None:
    content = encoded(picture((500, 333)), "JPEG")
    with Image.open(BytesIO(content)) as image:
        expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR))
    pixels = to_pixels(content, 224)
    assert (pixels.dtype, pixels.flags.writeable, pixels.flags.c_contiguous) == (np.uint8, True, True)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_resized_parts_are_pillows_up_to_rounding(mode: str) -> None:
    image, rng = picture((53, 37)).convert(mode), np.random.default_rng(0)
    for _ in range(200):
        left, top = rng.uniform(0, 0.8, 2)
        right, bottom = np.minimum(1, (left, top) + rng.uniform(0.1, 1, 2))  # often to the very edge
        crop = Crop(left, top, right, bottom, mirrored=bool(rng.random() < 0.5))
        box = (crop.left * 53, crop.top * 37, crop.right * 53, crop.bottom * 37)
        expected = image.resize((24, 24), Image.Resampling.BILINEAR, box=box)
        expected = ImageOps.mirror(expected) if crop.mirrored else expected
        assert np.abs(np.asarray(crop.resized(image, 24)).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("size", [(250_001, 3), (3, 1_000_007), (199_999, 2)])
def test_images_with_a_very_long_side_are_resized_as_by_pillow(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, size[::-1], np.uint8))
    crop = Crop(0.1, 0.3, 0.9, 1)
    box = (crop.left * size[0], crop.top * size[1], crop.right * size[0], crop.bottom * size[1])
    expected = image.resize((24, 24), Image.Resampling.BILINEAR, box=box)
    assert np.abs(np.asarray(crop.resized(image, 24)).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("name", "size"), [("JPEG", SIZE), ("JPEG", (1210, 905)), ("PNG", (301, 200)), ("TIFF", SIZE)])
def test_gray_pixels_of_an_image_and_of_its_gray_png_are_the_same(
    name: str, size: tuple[int, int], orientation: int
) -> None:
    content = encoded(picture(size), name, orientation)
    pixels = to_pixels(content, 64, "gray")
    assert pixels.shape == (64, 64, 3)
    assert (pixels == pixels[:, :, :1]).all()
    assert (pixels == to_pixels(to_grayscale(content), 64, "gray")).all()
    assert (pixels != to_pixels(content, 64)).any()


def test_large_jpegs_decoded_at_a_fraction_give_nearly_the_same_pixels() -> None:
    content = encoded(picture((1600, 1200)), "JPEG")
    with Image.open(BytesIO(content)) as image:
        expected = np.asarray(image.resize((96, 96), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(to_pixels(content, 96) - expected).max() <= 3


@pytest.mark.parametrize(("content", "reason"), BROKEN)
def test_broken_content_is_refused_with_a_reason(content: bytes, reason: str) -> None:
    for convert in (to_features, to_grayscale, lambda content: to_pixels(content, 8)):
        with pytest.raises(UnreadableImage) as refused:
            convert(content)
        assert refused.value.reason == reason


@pytest.mark.parametrize("bits", [0, 1, 7, 9, 13, 16, 255])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_with_a_number_of_bits_that_no_jpeg_has_is_refused_by_all(mode: str, bits: int) -> None:
    content = bytearray(encoded(picture().convert(mode), "JPEG"))
    content[content.index(b"\xff\xc0") + 4] = bits
    for convert in (to_features, to_grayscale, lambda content: to_pixels(content, 8)):
        with pytest.raises(UnreadableImage):
            convert(bytes(content))


@pytest.mark.parametrize("content", [JPEG[: len(JPEG) // 2], empty_png(40, 30)])
def test_headers_are_read_without_decoding_pixels(content: bytes) -> None:
    assert read_header(BytesIO(content)).format in ("JPEG", "PNG")


def test_the_message_says_what_was_found_expected_and_to_do() -> None:
    with pytest.raises(UnreadableImage, match=r"60000 x 60000 pixels in .* at most 500,000,000 .*smaller"):
        to_pixels(empty_png(60_000, 60_000), 8)
    with pytest.raises(UnreadableImage, match=r"JPEG of 90 x 60 .*copy the file again"):
        to_features(JPEG[:-200])


def test_refusals_survive_pickling() -> None:
    refused = pickle.loads(pickle.dumps(UnreadableImage("0 bytes", "empty")))
    assert (str(refused), refused.reason) == ("0 bytes", "empty")


def test_flipped_bits_in_a_jpeg_are_noticed() -> None:
    content = bytearray(encoded(picture((500, 333)), "JPEG"))
    middle = len(content) // 2
    for position in range(middle, middle + 200, 10):
        content[position] ^= 0x55
    features = to_features(bytes(content))
    assert "Corrupt JPEG data" in str(features.decode_warning)
    assert (features.width, features.height) == (500, 333)


def test_a_wrong_checksum_in_a_png_is_noticed() -> None:
    content = bytearray(encoded(picture()))
    content[content.rindex(b"IEND") - 5] ^= 0xFF  # the last byte of the checksum of the pixels
    assert "checksum" in str(to_features(bytes(content)).decode_warning)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("name", OPENERS)
def test_damage_raises_nothing_else(name: str) -> None:
    rng = np.random.default_rng(3)
    whole = encoded(picture(), name, orientation=6)
    for number in range(60):
        content = bytearray(whole)
        # Every second time the header, where the parsers are.
        for position in rng.integers(0, len(content) if number % 2 else 200, rng.integers(1, 20)):
            content[position] = rng.integers(256)
        damaged = bytes(content[: rng.integers(1, len(content))] if number % 3 == 0 else content)
        for convert in (to_features, to_grayscale):
            with suppress(UnreadableImage):
                convert(damaged)


def test_a_resized_and_recompressed_twin_has_nearly_the_same_hash() -> None:
    original = to_features(encoded(picture((500, 333)), "JPEG"))
    twin = to_features(encoded(picture((500, 333)).resize((350, 233)), "JPEG", quality=60))
    mirrored = to_features(encoded(ImageOps.mirror(picture((500, 333))), "JPEG", quality=60))
    assert distance(original.perceptual_hash, twin.perceptual_hash) <= 4
    assert distance(original.perceptual_hash, mirrored.perceptual_hash) > 10
    assert distance(original.mirrored_hash, mirrored.perceptual_hash) <= 4
    assert distance(original.perceptual_hash, mirrored.mirrored_hash) <= 4


@pytest.mark.parametrize("orientation", [1, 2, 6])
@pytest.mark.parametrize("size", [(31, 57), (500, 333)])
def test_the_hashes_are_nearly_imagehashs_of_the_upright_image_and_of_its_mirror(
    size: tuple[int, int], orientation: int, tmp_path: Path
) -> None:
    content = encoded(picture(size), "PNG", orientation)
    upright = Image.fromarray(decoded(to_grayscale(content)).astype(np.uint8))
    expected = (str(imagehash.phash(upright)), str(imagehash.phash(ImageOps.mirror(upright))))
    (tmp_path / "image.png").write_bytes(content)
    with (tmp_path / "image.png").open("rb") as file:
        for features in (to_features(content), to_file_features(file)):
            assert distance(features.perceptual_hash, expected[0]) <= 4
            assert distance(features.mirrored_hash, expected[1]) <= 4


def test_camera_files_with_several_images_count_as_jpeg() -> None:
    content = BytesIO()
    picture().save(content, "MPO", save_all=True, append_images=[picture()])
    assert to_features(content.getvalue()).format == "JPEG"


def test_the_stored_files_work_alone(tmp_path: Path) -> None:
    copy_decoding(tmp_path / "stored")
    (tmp_path / "image.jpg").write_bytes(JPEG)
    program = (
        "import sys, pathlib; sys.path.insert(0, '.'); from stored import pixels; "
        "content = pathlib.Path('image.jpg').read_bytes()"
    )
    uses = (
        "file = open('image.jpg', 'rb'); print(pixels.to_pixels(content, 8).shape, "
        "pixels.to_file_pixels(file, 4, max_bytes=10**6).shape, 'image_assets' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{program}; {uses}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "(8, 8, 3) (4, 4, 3) False", done.stderr


def test_real_photographs_come_through_and_their_twins_are_near() -> None:
    paths = sorted(PHOTOGRAPHS.rglob("*.jpg"))[::13][:20]
    if not paths:
        pytest.skip(f"no photographs in {PHOTOGRAPHS}")
    for path in paths:
        content = path.read_bytes()
        features = to_features(content)
        assert features.decode_warning is None
        with Image.open(BytesIO(content)) as image:
            plain = not needs_colors(image)  # with a profile, gray is computed from its colors
            image.draft("L", None)
            if plain:
                assert np.array_equal(decoded(to_grayscale(content)), np.asarray(image))
        smaller = Image.fromarray(to_pixels(content, 256)).resize((features.width * 7 // 10, features.height * 7 // 10))
        twin = encoded(smaller, "JPEG", quality=60)
        assert distance(features.perceptual_hash, to_features(twin).perceptual_hash) <= 4


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()
