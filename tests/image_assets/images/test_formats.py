"""What a file is, whether it is complete, and that the numbers in it never decide how much memory it takes."""

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from image_assets.images.features import to_features
from image_assets.images.formats import UnreadableImage, format_of, is_complete, size_of_jxl
from image_assets.images.isolated_process import GuardedProcess
from image_assets.images.pictures import open_picture
from image_assets.images.pixels import read_header, to_pixels, to_smaller
from tests.support.image_files import dicom, png_16, saved, tiff, with_late_exif
from tests.support.images import noise_jpeg, picture, put

MEMORY_BYTES = 1024**3
GRAY = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)


def in_little_memory(function: Callable[[bytes], Any], content: bytes) -> Any:
    """The function's result, or what it raises; an ItemFailure if it takes too much memory."""
    with GuardedProcess(function, memory_bytes=MEMORY_BYTES) as guarded:
        return guarded.run(content, cpu_seconds=20)


def pixels_of(content: bytes) -> np.ndarray:
    return to_pixels(content, 8)


def header_size_of(file: BinaryIO) -> tuple[int, int]:
    header = read_header(file)
    return header.width, header.height


def with_size(content: bytes, size: int) -> bytes:
    """A JPEG whose frame header promises this width and height."""
    height, width = GRAY.shape
    return content.replace(struct.pack(">HH", height, width), struct.pack(">HH", size, size), 1)


def with_tiles(side: int) -> bytes:
    """A TIFF of 64 x 48 pixels in tiles of a width and length that only its tags have."""
    content = tiff(GRAY, tile=(64, 64), compression="zlib")
    for tag in (322, 323):
        content = content.replace(struct.pack("<HHII", tag, 4, 1, 64), struct.pack("<HHII", tag, 4, 1, side))
    return content


def test_the_brands_of_a_file_are_read_as_far_as_it_goes() -> None:
    assert in_little_memory(format_of, b"\xff\xff\xff\xffftypheic") == "HEIF"
    assert in_little_memory(format_of, b"\xff\xff\xff\xffftypmp42" + bytes(500)) is None
    assert format_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif") == "AVIF"


def size_of_file(name: bytes) -> tuple[int, int]:
    with Path(name.decode()).open("rb") as file:
        return header_size_of(file)


def test_a_chunk_is_read_as_far_as_the_file_goes_whatever_length_it_promises(tmp_path: Path) -> None:
    content = with_late_exif(png_16(GRAY), b"Exif")
    at = content.index(b"eXIf")
    file = put(tmp_path, "a.png", content[: at - 4] + struct.pack(">I", 2**31 - 1) + content[at:])
    assert in_little_memory(size_of_file, str(file).encode()) == (64, 48)


@pytest.mark.parametrize("bits", [12, 16])
def test_a_rare_jpeg_is_refused_for_its_size_before_it_is_decoded(bits: int) -> None:
    content = with_size(bytes(imagecodecs.ljpeg_encode(GRAY, bitspersample=bits)), 65_500)
    assert header_size_of(BytesIO(content)) == (65_500, 65_500)
    with pytest.raises(UnreadableImage, match="65500 x 65500 pixels") as refused:
        in_little_memory(pixels_of, content)
    assert refused.value.reason == "too_many_pixels"


def test_a_rare_jpeg_with_bytes_between_its_segments_is_read() -> None:
    content = bytes(imagecodecs.ljpeg_encode(GRAY, bitspersample=12))
    assert header_size_of(BytesIO(content.replace(b"\xff\xc3", b"\0\xff\xff\xc3", 1))) == (64, 48)
    assert to_pixels(content.replace(b"\xff\xc3", b"\xff\xff\xc3", 1), 8).shape == (8, 8, 3)


def test_the_mode_of_a_rare_jpeg_is_that_of_its_pixels() -> None:
    content = imagecodecs.jpeg8_encode(np.repeat(GRAY[:, :, None], 4, axis=2), bitspersample=12)
    found = open_picture(BytesIO(bytes(content)))
    assert (found.header.mode, found.decode(0).image.mode) == ("RGBA;16", "RGBA")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def in_parts(codestream: bytes, first: int) -> bytes:
    """A JPEG XL whose image is in two boxes, with so many bytes in the first one."""
    head = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ")
    last = struct.pack(">I", 1 << 31 | 1)
    return head + box(b"jxlp", bytes(4) + codestream[:first]) + box(b"jxlp", last + codestream[first:])


@pytest.mark.parametrize("first", [0, 1, 2, 5, 100])
def test_the_size_of_a_jpeg_xl_in_parts_is_read_across_them(first: int) -> None:
    content = in_parts(bytes(imagecodecs.jpegxl_encode(np.zeros((700, 513), np.uint8), usecontainer=False)), first)
    assert imagecodecs.jpegxl_decode(content).shape[:2] == (700, 513)
    assert size_of_jxl(content) == (513, 700)


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("size", [(48, 64), (256, 256), (30, 40), (1, 512), (700, 513), (9000, 20), (180, 320)])
def test_the_size_of_a_jpeg_xl_is_read_from_its_header(size: tuple[int, int], container: bool) -> None:
    content = bytes(imagecodecs.jpegxl_encode(np.zeros(size, np.uint8), usecontainer=container))
    assert size_of_jxl(content) == size[::-1]


def test_a_jpeg_xl_is_refused_for_its_size_before_it_is_decoded() -> None:
    width = bytes(imagecodecs.jpegxl_encode(np.zeros((30_000, 9), np.uint8)))
    square = width[:2] + (int.from_bytes(width[2:8], "little") & (1 << 21) - 1 | 1 << 21).to_bytes(6, "little")
    assert size_of_jxl(square + width[8:]) == (30_000, 30_000)
    with pytest.raises(UnreadableImage, match="30000 x 30000 pixels: expected at most 250,000,000 for JXL") as refused:
        in_little_memory(pixels_of, square + width[8:])
    assert refused.value.reason == "too_many_pixels"


@pytest.mark.parametrize("side", [65_536, 2**20])
def test_a_small_tiff_with_huge_tiles_is_refused(side: int) -> None:
    for convert in (pixels_of, smaller):
        with pytest.raises(UnreadableImage, match="save it with fewer bands or pixels") as refused:
            in_little_memory(convert, with_tiles(side))
        assert refused.value.reason == "too_many_pixels"


def smaller(content: bytes) -> bytes:
    return to_smaller(BytesIO(content), 8)


@pytest.mark.parametrize("frames", [99_999_999_999, -5])
def test_a_dicom_file_with_an_impossible_number_of_frames_is_refused(frames: int) -> None:
    content = dicom(GRAY, syntax="1.2.840.10008.1.2.4.70", NumberOfFrames=frames)
    with pytest.raises(UnreadableImage, match="frames: expected 1 to 2,147,483,647"):
        to_features(content)


def with_thumbnail(image: Image.Image, **options: Any) -> bytes:
    """A JPEG with a thumbnail, a JPEG itself, in its EXIF data."""
    thumbnail = noise_jpeg(3, (60, 40))
    at = 8 + 6 + 2 + 2 * 12 + 4  # behind the two directories
    tags = struct.pack("<HHII", 0x0201, 4, 1, at) + struct.pack("<HHII", 0x0202, 4, 1, len(thumbnail))
    directories = struct.pack("<IHIH", 8, 0, 14, 2) + tags + bytes(4)
    exif = b"II*\0" + directories + thumbnail
    return saved(image, "JPEG", exif=b"Exif\0\0" + exif, **options)


PICTURE = picture(1, (300, 200))
MOTION_PHOTO = b"\0\0\0\x18ftypmp42" + bytes(100_000)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_the_end_of_a_thumbnail_is_not_that_of_its_photograph(options: dict[str, bool]) -> None:
    content = with_thumbnail(PICTURE, **options)
    assert content.count(b"\xff\xd9") == 2
    assert is_complete(BytesIO(content), "JPEG")
    assert not is_complete(BytesIO(content[:-3000]), "JPEG")
    with pytest.raises(UnreadableImage, match="the file is cut short: copy the file again"):
        to_pixels(content[:-3000], 8)
    with pytest.raises(UnreadableImage, match="truncated"):
        to_smaller(BytesIO(content[:-3000]), 8)
    assert "the end marker is missing" in str(to_features(content[:-2]).decode_warning)


@pytest.mark.parametrize("after", [b"", bytes(100), MOTION_PHOTO, with_thumbnail(PICTURE)[:-3000], noise_jpeg(2)])
def test_whatever_follows_the_end_of_a_photograph_it_is_complete(after: bytes) -> None:
    assert is_complete(BytesIO(with_thumbnail(PICTURE) + after), "JPEG")


@pytest.mark.parametrize(
    "between", [b"\0", b"\xff", b"\xff\xff\xff", b"\xff\x01", b"\xff\xd0", b"junk", b"\xff" * 5000]
)
def test_bytes_between_the_segments_of_a_jpeg_are_skipped(between: bytes) -> None:
    content = noise_jpeg(1, (300, 200))
    content = content[:2] + between + content[2:]
    assert is_complete(BytesIO(content), "JPEG")
    assert not is_complete(BytesIO(content[:-3000]), "JPEG")


class CountedFile(BytesIO):
    """A file that counts how often and how much is read."""

    reads = bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.reads, self.bytes_read = self.reads + 1, self.bytes_read + len(found)
        return found


def test_the_end_of_a_large_jpeg_is_found_without_reading_all_of_it() -> None:
    content = noise_jpeg(1, (300, 200))
    pixels = content.index(b"\xff\xda") + 100
    file = CountedFile(content[:pixels] + bytes(10_000_000) + content[pixels:])
    assert is_complete(file, "JPEG")
    assert file.bytes_read < 200_000


@pytest.mark.parametrize("between", [b"\xff\xff", b"\xff\x01", b"\0\xff"])
def test_bytes_between_the_segments_of_a_jpeg_are_read_in_blocks(between: bytes) -> None:
    file = CountedFile(b"\xff\xd8" + between * 500_000)
    assert not is_complete(file, "JPEG")
    assert file.reads < 1000


def test_a_gif_with_its_trailer_is_complete_and_one_without_may_be() -> None:
    content = saved(PICTURE, "GIF")
    assert content[:-1].rfind(b";") > len(content) - 2000
    for padding in (b"", b"\0\0", b"\r\n"):
        assert is_complete(BytesIO(content + padding), "GIF")
    for readable in (content[:-1], content + b"made by a camera"):
        assert is_complete(BytesIO(readable), "GIF") is None
        assert to_smaller(BytesIO(readable), 8) == to_smaller(BytesIO(content), 8)
    with pytest.raises(UnreadableImage, match="Unexpected end of GIF source.*: copy the file again, or save it again"):
        to_smaller(BytesIO(content[:-1000]), 8)
