"""Every case about files on the page "What is accepted" is read as the page says, or refused with its reason."""

import base64
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageCms

from image_assets.images.features import to_features
from image_assets.images.formats import UnreadableImage, not_an_image
from image_assets.images.grayscale import to_grayscale
from image_assets.images.pixels import MAX_PIXELS, Reading, to_pixels, to_smaller
from scripts.accepted import FORMATS, PIXEL_VALUES, SECTIONS, TESTS
from tests.support.image_files import (
    bmp_with_alpha,
    dicom,
    heif,
    jpeg_xl,
    png_16,
    saved,
    tiff,
    tiff_of_few_bits,
    tiff_pages,
    with_late_exif,
)
from tests.support.images import picture

CASES = Path(__file__).parents[4] / "shared" / "cases" / "files"
SIZE = (320, 200)
COLOR = picture(1, SIZE)
RGB = np.asarray(COLOR)
GRAY = np.asarray(COLOR.convert("L"))
LEVELS = np.round((GRAY.astype(float) - GRAY.min()) * (255 / np.ptp(GRAY))).astype(np.uint8)  # from 0 to 255
WHITE = np.full_like(GRAY, 255)
RED_AND_GREEN = np.where(np.arange(SIZE[0])[:, None] < SIZE[0] // 2, np.uint8([255, 0, 0]), np.uint8([0, 130, 0]))
RED_AND_GREEN = np.broadcast_to(RED_AND_GREEN, RGB.shape)  # equally bright


@dataclass(frozen=True, eq=False)
class Read:
    """A file, and the gray levels, upright, that it is to have, within `off` on average."""

    content: Callable[[], bytes]
    gray: np.ndarray = field(default_factory=lambda: LEVELS)
    off: float = 1.0
    pages: int = 1
    format: str = ""
    warning: str | None = None
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Refused:
    """A file, the reason why it is refused, and words in the message."""

    content: Callable[[], bytes]
    reason: str
    words: str


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def profile(kind: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


def converted(pixels: np.ndarray, source: bytes) -> np.ndarray:
    """Gray levels after LittleCMS, called without Pillow, has converted colors from a profile to sRGB."""
    rgb = imagecodecs.cms_transform(
        pixels, source, imagecodecs.cms_profile("srgb"), colorspace="rgb", outcolorspace="rgb"
    )
    return np.asarray(Image.fromarray(np.asarray(rgb)).convert("L"))


def wide_profile() -> bytes:
    """A profile of colors wider than sRGB, with its gamma."""
    primaries = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)  # of Display P3
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=(0.3127, 0.329, 1.0), primaries=primaries, gamma=2.2))


def turned(orientation: int) -> Image.Image:
    """The picture as a camera stores it that is held this way."""
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    return COLOR.transpose(Image.Transpose(turns[orientation]))


def with_values(top: float, bottom: float = 0, dtype: str = "float32") -> np.ndarray:
    """The picture with pixel values from bottom to top."""
    values = bottom + LEVELS.astype(float) * ((top - bottom) / 255)
    return (values if dtype.startswith("float") else np.rint(values)).astype(dtype)


def outlying(values: np.ndarray, outlier: float) -> np.ndarray:
    """The values with a square of 4 x 4 outliers in a corner."""
    values = values.copy()
    values[:4, :4] = outlier
    return values


READ: dict[str, list[Read]] = {
    "heic": [
        Read(lambda: heif(COLOR), GRAY, 2, format="HEIF"),
        Read(lambda: heif(turned(6), exif=exif(6).tobytes()), GRAY, 2),
    ],
    "avif": [Read(lambda: saved(COLOR, "AVIF", quality=95), GRAY, 2, format="AVIF")],
    "jpeg_2000": [
        Read(lambda: saved(COLOR, "JPEG2000"), GRAY, format="JPEG2000"),
        Read(lambda: bytes(imagecodecs.jpeg2k_encode(RGB, codecformat="j2k", level=0, reversible=True)), GRAY),
        Read(lambda: bytes(imagecodecs.jpeg2k_encode(with_values(4095, dtype="uint16"), level=0, reversible=True))),
    ],
    "jpeg_xl": [
        Read(lambda: jpeg_xl(RGB), GRAY, format="JXL"),
        Read(lambda: jpeg_xl(np.dstack([RGB, WHITE])), GRAY),
        Read(lambda: jpeg_xl(with_values(65535, dtype="uint16"))),
        Read(lambda: jpeg_xl(np.stack([RGB, 255 - RGB])), GRAY),
    ],
    "dicom": [
        Read(lambda: dicom(with_values(4095, dtype="uint16"), BitsStored=12), format="DICOM", value_range=(0, 4095)),
        Read(lambda: dicom(4095 - with_values(4095, dtype="uint16"), "MONOCHROME1", BitsStored=12)),
        Read(lambda: dicom(LEVELS)),
        Read(lambda: dicom(255 - LEVELS, "MONOCHROME1")),
        Read(lambda: dicom(RGB, "RGB"), GRAY),
        Read(lambda: dicom(with_values(65535, dtype="uint16"))[128 + 4 :], off=1),
        Read(lambda: dicom(LEVELS >> 4, BitsStored=4), (LEVELS >> 4) * 17, 0, value_range=(0, 15)),
    ],
    "dicom_window": [
        Read(
            lambda: dicom(
                with_values(2000, dtype="int16"),
                RescaleSlope=1,
                RescaleIntercept=-1000,
                WindowCenter=0,
                WindowWidth=1000,
            ),
            np.clip((LEVELS.astype(float) / 255 * 2000 - 1500 + 1000) / 1000 * 255, 0, 255),
            value_range=(-500, 499),
        ),
        Read(
            lambda: dicom(outlying(with_values(1000, -500, "int16"), -2000), PixelPaddingValue=-2000),
            outlying(LEVELS, 0),
            1.5,
        ),
        # Empty elements, as anonymizing programs leave them.
        Read(
            lambda: dicom(
                with_values(4095, dtype="uint16"),
                BitsStored=12,
                WindowCenter=None,
                WindowWidth=None,
                RescaleSlope=None,
                RescaleIntercept=None,
            )
        ),
    ],
    "dicom_compressed": [
        Read(
            lambda syntax=syntax: dicom(
                with_values(4095, dtype="uint16"), syntax=f"1.2.840.10008.1.2.4.{syntax}", BitsStored=12
            )
        )
        for syntax in ("57", "70", "80", "90", "201")
    ],
    "mpo": [
        Read(
            lambda: saved(COLOR, "MPO", save_all=True, append_images=[picture(2, SIZE)], quality=95),
            GRAY,
            2,
            format="JPEG",
        )
    ],
    "wrong_suffix": [Read(lambda: saved(COLOR, "WEBP", quality=95), GRAY, 3, format="WEBP")],
    "cmyk": [
        Read(lambda: saved(COLOR.convert("CMYK"), "JPEG", quality=95), GRAY, 2),
        Read(lambda: saved(COLOR.convert("CMYK"), "TIFF"), GRAY),
    ],
    "12_bit_jpeg": [
        Read(lambda: bytes(imagecodecs.ljpeg_encode(with_values(4095, dtype="uint16"), bitspersample=12))),
        Read(lambda: bytes(imagecodecs.ljpeg_encode(with_values(65535, dtype="uint16"), bitspersample=16))),
    ],
    "no_end_marker": [
        Read(
            lambda: saved(COLOR, "JPEG", quality=95)[:-2],
            GRAY,
            2,
            warning="the end marker is missing; all pixels are there",
        )
    ],
    "pages": [
        Read(lambda: tiff_pages(WHITE, LEVELS, GRAY), pages=3),
        Read(lambda: tiff_pages(LEVELS, GRAY), pages=2),
        Read(lambda: tiff_pages(WHITE, WHITE), WHITE, pages=2),
        Read(lambda: tiff_pages(np.full_like(RGB, 255), RED_AND_GREEN, RGB), np.full_like(GRAY, 76), pages=3),
        Read(
            lambda: saved(
                Image.new("1", SIZE, 1), "TIFF", save_all=True, append_images=[COLOR.convert("1")], compression="group4"
            ),
            np.asarray(COLOR.convert("1")) * 255,
            pages=2,
        ),
        Read(lambda: tiff_pages(np.zeros_like(GRAY, np.uint16), with_values(4095, dtype="uint16")), pages=2),
        Read(lambda: dicom(np.stack([np.zeros_like(GRAY), LEVELS])), pages=2),
    ],
    "animation": [
        Read(
            lambda name=name, options=options: saved(
                Image.new("RGB", SIZE), name, save_all=True, append_images=[COLOR], **options
            ),
            GRAY,
            6,  # a GIF has 256 colors
            pages=2,
        )
        for name, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}))
    ],
    "thumbnail_first": [
        Read(lambda: tiff_pages(RGB[::8, ::8], RGB, options={0: {"subfiletype": 1}}), GRAY),
        Read(lambda: tiff_pages(RGB[::8, ::8], RGB), GRAY),
        Read(lambda: tiff_pages(GRAY[::8, ::8], with_values(4095, dtype="uint16"), options={0: {"subfiletype": 1}})),
    ],
    "rare_tiff": [
        Read(lambda: tiff(RGB, tile=(64, 48)), GRAY),
        Read(lambda: tiff(np.moveaxis(RGB, 2, 0).copy(), photometric="rgb", planarconfig="separate"), GRAY),
        Read(lambda: tiff(RGB, bigtiff=True), GRAY),
        Read(lambda: tiff(RGB, compression="zstd", predictor=True), GRAY),
        Read(lambda: tiff(RGB, compression="webp", compressionargs={"lossless": True}), GRAY),
        Read(lambda: tiff(RGB, compression="jpeg2000", tile=(64, 64), compressionargs={"level": 0}), GRAY),
        Read(lambda: tiff(with_values(4095, dtype="uint16"), compression="zlib", predictor=True, tile=(64, 64))),
        Read(lambda: saved(COLOR.quantize(64), "TIFF"), np.asarray(COLOR.quantize(64).convert("L"))),
        Read(lambda: saved(COLOR.convert("1"), "TIFF", compression="group4"), np.asarray(COLOR.convert("1")) * 255),
        *(
            Read(lambda bits=bits: tiff_of_few_bits(LEVELS >> 8 - bits, bits), (LEVELS >> 8 - bits) * factor, 0)
            for bits, factor in ((2, 85), (4, 17))
        ),
        Read(lambda: tiff_of_few_bits(15 - (LEVELS >> 4), 4, photometric="miniswhite"), (LEVELS >> 4) * 17, 0),
    ],
    "12_bits_in_16": [
        Read(content, value_range=(0, 2**bits - 1))
        for bits in (10, 12, 14)
        for content in (
            lambda bits=bits: tiff(with_values(2**bits - 1, dtype="uint16")),
            lambda bits=bits: png_16(with_values(2**bits - 1, dtype="uint16")),
            lambda bits=bits: tiff(with_values(2**bits - 1, dtype="uint16")[:, :, None].repeat(3, 2)),
            lambda bits=bits: png_16(with_values(2**bits - 1, dtype="uint16")[:, :, None].repeat(3, 2)),
        )
    ],
    "16_bits": [
        Read(lambda: tiff(LEVELS.astype(np.uint16) * 257), off=0, value_range=(0, 65535)),
        Read(lambda: png_16(LEVELS.astype(np.uint16) * 257), off=0),
        Read(lambda: tiff(RGB.astype(np.uint16) * 257), GRAY, 0),
        Read(lambda: png_16(RGB.astype(np.uint16) * 257), GRAY, 0),
        # The brightest blue is dark: the channels share one range.
        Read(
            lambda: tiff((RGB * np.array([1, 1, 0.1])).astype(np.uint16) * 257),
            np.asarray(Image.fromarray((RGB * np.array([1, 1, 0.1])).astype(np.uint8)).convert("L")),
            0,
        ),
    ],
    "one_look": [
        Read(
            lambda dtype=dtype, top=top: tiff(with_values(top, dtype="uint16").astype(dtype)),
            off=0.5,
            value_range=(0, top),
        )
        for dtype in ("uint16", "int16", "uint32", "int32", "float32", "float64")
        for top in (1023, 4095, 16383, 32767)
    ],
    "declared_range": [
        Read(
            lambda: tiff(with_values(2500, 500, "uint16"), extratags=[(340, 3, 1, 500, True), (341, 3, 1, 2500, True)]),
            value_range=(500, 2500),
        ),
        Read(
            lambda: png_16(with_values(1000, dtype="uint16"), sBIT=b"\x0c"),
            LEVELS * (1000 / 4095),
            value_range=(0, 4095),
        ),
    ],
    "floats": [
        Read(lambda dtype=dtype: tiff(with_values(1, dtype=dtype)), off=0.5, value_range=(0, 1))
        for dtype in ("float16", "float32", "float64")
    ]
    + [Read(lambda: tiff(RGB.astype(np.float32) / 255), GRAY, 0.5)],
    "other_floats": [
        Read(lambda: tiff(with_values(41.7, -12.3))),
        Read(lambda: tiff(with_values(3000, -1000, "int16")), off=1.5),
    ],
    "hot_pixels": [
        Read(lambda: tiff(outlying(with_values(4095, dtype="uint32"), 2**31)), outlying(LEVELS, 255)),
        Read(lambda: tiff(outlying(with_values(1, dtype="float32"), 1e6)), outlying(LEVELS, 255)),
    ],
    "no_data": [
        Read(lambda missing=missing: tiff(outlying(with_values(1), missing)), outlying(LEVELS, 0))
        for missing in (-9999, float("nan"), float("-inf"), -3.4e38)
    ]
    + [
        Read(
            lambda: tiff(np.where(LEVELS < 100, -9999, with_values(3000, -50)).astype("float32")),
            np.where(LEVELS < 100, 0, (LEVELS - 100.0) * (255 / 155)),
            3,
        ),
        Read(
            lambda: tiff(outlying(with_values(900, 100), 5000), extratags=[(42113, 2, 5, "5000", True)]),
            outlying(LEVELS, 255),
        ),
    ],
    "white_is_zero": [
        Read(
            lambda top=top: tiff(top - with_values(top, dtype="uint16"), photometric="miniswhite"), value_range=(top, 0)
        )
        for top in (1023, 4095, 65535)
    ]
    + [
        Read(lambda: tiff(255 - LEVELS, photometric="miniswhite"), off=0),
        Read(lambda: tiff(1 - with_values(1), photometric="miniswhite")),
    ],
    "profiles": [
        Read(lambda: saved(COLOR, "PNG", icc_profile=wide_profile()), converted(RGB, wide_profile())),
        Read(
            lambda: saved(COLOR, "JPEG", quality=98, subsampling=0, icc_profile=wide_profile()),
            converted(RGB, wide_profile()),
            2,
        ),
        Read(lambda: saved(COLOR, "TIFF", icc_profile=wide_profile()), converted(RGB, wide_profile())),
        Read(lambda: saved(COLOR, "PNG", icc_profile=profile("sRGB")), GRAY, 0),
        Read(lambda: saved(COLOR, "PNG", icc_profile=b"no profile"), GRAY, 0),
    ],
    "lab": [
        Read(
            lambda: saved(
                ImageCms.applyTransform(
                    COLOR,
                    ImageCms.buildTransform(
                        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
                    ),
                ),
                "TIFF",
            ),
            GRAY,
        )
    ],
    "empty_alpha": [
        Read(lambda: bmp_with_alpha(np.dstack([RGB, 0 * GRAY])), GRAY, 0),
        Read(lambda: saved(Image.fromarray(np.dstack([RGB, 0 * GRAY])), "PNG"), GRAY, 0),
        Read(lambda: tiff(np.dstack([RGB, 0 * GRAY]), extrasamples=["unassalpha"]), GRAY, 0),
    ],
    "transparent": [
        Read(lambda: saved(Image.fromarray(np.dstack([0 * GRAY, LEVELS])), "PNG"), 255 - LEVELS),
        Read(lambda: saved(Image.fromarray(np.dstack([WHITE, LEVELS])), "PNG"), LEVELS),
    ],
    "fourth_band": [
        Read(lambda fourth=fourth: tiff(np.dstack([RGB, fourth]), extrasamples=["unspecified"]), GRAY, 0)
        for fourth in (0 * GRAY, GRAY, WHITE)
    ]
    + [Read(lambda: tiff(np.dstack([RGB, GRAY, WHITE]), extrasamples=["unspecified"] * 2), GRAY, 0)],
    "orientation": [
        Read(
            lambda number=number, name=name: saved(
                turned(number), name, exif=exif(number), **({"quality": 95} if name != "PNG" else {})
            ),
            GRAY,
            3,
        )
        for number in range(2, 9)
        for name in ("JPEG", "PNG", "TIFF")
    ]
    + [Read(lambda: tiff(np.rot90(with_values(4095, dtype="uint16"), 1).copy(), extratags=[(274, 3, 1, 6, True)]))],
    "late_exif": [Read(lambda: with_late_exif(saved(turned(6), "PNG"), exif(6).tobytes()[6:]), GRAY, 0)],
}
LARGE_JPEG = saved(COLOR, "JPEG", quality=95)
REFUSED: dict[str, list[Refused]] = {
    "cut_short": [
        Refused(lambda: LARGE_JPEG[:-3], "undecodable", "copy the file again"),
        Refused(lambda: saved(COLOR, "PNG")[:-400], "undecodable", "copy the file again"),
        Refused(lambda: heif(COLOR)[:-400], "undecodable", "copy the file again"),
        Refused(lambda: saved(COLOR, "AVIF")[:-400], "undecodable", "copy the file again"),
        Refused(lambda: saved(COLOR, "JPEG2000")[:-400], "undecodable", "copy the file again"),
        Refused(lambda: jpeg_xl(RGB)[:-400], "undecodable", "copy the file again"),
        Refused(lambda: tiff(with_values(1))[:-400], "undecodable", "copy the file again"),
        Refused(lambda: dicom(LEVELS)[:-400], "undecodable", "copy the file again"),
    ],
    "empty": [Refused(lambda: b"", "empty", "copy it again")],
    "html": [
        Refused(lambda: b"<!DOCTYPE html><html><body>404", "not_an_image", "HTML page"),
        Refused(lambda: b"\n <HTML>", "not_an_image", "HTML page"),
    ],
    "lfs": [Refused(lambda: b"version https://git-lfs.github.com/spec/v1\noid", "not_an_image", "git lfs pull")],
    "apple_double": [
        Refused(lambda: b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(80), "not_an_image", "resource fork.*delete it")
    ],
    "pdf": [Refused(lambda: b"%PDF-1.7\n", "not_an_image", "PDF.*export its pages")],
    "svg": [
        Refused(lambda: b'<svg xmlns="x">', "not_an_image", "SVG.*PNG"),
        Refused(lambda: b"<?xml version='1.0'?>\n<svg>", "not_an_image", "SVG.*PNG"),
    ],
    "video": [
        Refused(lambda: b"\0\0\0\x20ftypisom" + bytes(24), "not_an_image", "video.*frames"),
        Refused(lambda: b"\x1aE\xdf\xa3" + bytes(24), "not_an_image", "video.*frames"),
    ],
    "raw": [
        Refused(lambda: b"II*\0\x10\0\0\0CR\2\0", "not_an_image", "CR2.*export"),
        Refused(lambda: b"FUJIFILMCCD-RAW ", "not_an_image", "RAF.*export"),
        Refused(lambda: tiff(with_values(4095, dtype="uint16"), photometric="cfa"), "not_an_image", "raw.*export"),
    ],
    "archive": [Refused(lambda: b"PK\3\4" + bytes(30), "not_an_image", "ZIP.*unpack")],
    "line_break_before": [
        Refused(lambda: b"\r\n" + LARGE_JPEG, "not_an_image", r"JPEG behind 2 bytes.*tail -c \+3"),
        Refused(lambda: b"\xef\xbb\xbf" + saved(COLOR, "PNG"), "not_an_image", r"PNG behind 3 bytes.*tail -c \+4"),
    ],
    "base64": [
        Refused(lambda: base64.b64encode(LARGE_JPEG), "not_an_image", "JPEG as base64"),
        Refused(lambda: b"data:image/jpeg;base64," + base64.b64encode(LARGE_JPEG), "not_an_image", "JPEG as base64"),
    ],
    "zeros": [Refused(lambda: bytes(5000), "not_an_image", "copy the file again")],
    "pixel_bomb": [
        Refused(
            lambda: LARGE_JPEG.replace(b"\xff\xc0\0\x11\x08\0\xc8\x01\x40", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff"),
            "too_many_pixels",
            "65535 x 65535",
        )
    ],
    "dicom_report": [Refused(lambda: dicom_report(), "not_an_image", "DICOM file without pixels")],
}
TESTS_FOLDER = Path(__file__).parents[2]
# Cases that other tests of this file check.
OTHER = {"61_megapixels", "both_decoders"}


def dicom_report() -> bytes:
    """A DICOM file whose rows were removed."""
    return dicom(LEVELS).replace(b"\x28\0\x10\0US", b"\x29\0\x10\0US").replace(b"\x28\0\x11\0US", b"\x29\0\x11\0US")


def each(cases: dict) -> list:
    """Every file of every case, with a name for the test."""
    return [
        pytest.param(file, id=f"{name}-{number}") for name, files in cases.items() for number, file in enumerate(files)
    ]


def gray_of(content: bytes) -> np.ndarray:
    with Image.open(BytesIO(content)) as image:
        return np.asarray(image.convert("L")).astype(float)


def test_every_case_of_the_page_has_a_test() -> None:
    names = [case.name for case in (*FORMATS, *PIXEL_VALUES)]
    assert sorted(names) == sorted({*READ, *REFUSED, *OTHER})
    assert len({case.name for cases in SECTIONS.values() for case in cases}) == sum(map(len, SECTIONS.values()))
    code = "".join(file.read_text() for file in TESTS_FOLDER.rglob("test_*.py"))
    assert [case.name for cases in TESTS.values() for case in cases if f"def {case.name}(" not in code] == []


@pytest.mark.parametrize("case", each(READ))
def test_a_file_is_read_as_the_page_says(case: Read) -> None:
    content = case.content()
    features = to_features(content)
    gray = gray_of(to_grayscale(content))
    assert gray.shape == case.gray.shape
    assert np.abs(gray - case.gray).mean() <= case.off
    assert features.pages == case.pages
    assert features.decode_warning == case.warning
    assert case.format in ("", features.format)
    if case.value_range:
        assert (features.black_value, features.white_value) == pytest.approx(case.value_range)
    if case.warning is None:  # above the content limit, a JPEG without its end is refused
        small = gray_of(to_smaller(BytesIO(content), 1024))
        assert small.shape == case.gray.shape
        assert np.abs(small - gray).mean() <= 1.5


@pytest.mark.parametrize("case", each(REFUSED))
def test_a_file_is_refused_with_its_reason_and_what_helps(case: Refused) -> None:
    content = case.content()
    for convert in (to_features, to_grayscale, lambda content: to_pixels(content, 8)):
        with pytest.raises(UnreadableImage, match=f"(?s){case.words}") as refused:
            convert(content)
        assert refused.value.reason == case.reason


def test_more_pixels_than_the_limit_are_downscaled_while_they_are_decoded() -> None:
    few = Reading(max_pixels=SIZE[0] * SIZE[1] // 2)
    for content in (LARGE_JPEG, saved(COLOR, "PNG"), tiff(with_values(4095, dtype="uint16")), heif(COLOR)):
        assert to_features(content, few).width == SIZE[0]
        difference = to_pixels(content, 64, reading=few).astype(float) - to_pixels(content, 64)
        assert np.abs(difference).mean() < 1.5
    wide = saved(Image.new("RGB", (20_000, MAX_PIXELS // 20_000 + 1), "red"), "JPEG")
    assert to_pixels(wide, 8).shape == (8, 8, 3)


def test_the_first_page_is_used_if_that_is_the_setting() -> None:
    content = tiff_pages(WHITE, LEVELS)
    assert to_pixels(content, 8, reading=Reading(page="first")).min() == 255
    assert to_pixels(content, 8).min() < 255


DAMAGED = ("heic", "avif", "jpeg_2000", "jpeg_xl", "dicom", "dicom_compressed", "12_bit_jpeg", "pages", "12_bits_in_16")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", each({name: READ[name][:1] for name in DAMAGED}))
def test_damage_is_refused_or_read_and_raises_nothing_else(case: Read) -> None:
    rng = np.random.default_rng(7)
    whole = case.content()
    for number in range(30):
        content = bytearray(whole)
        for position in rng.integers(0, len(content) if number % 2 else 600, rng.integers(1, 12)):  # often the header
            content[position] = rng.integers(256)
        damaged = bytes(content[: rng.integers(1, len(content))] if number % 3 == 0 else content)
        for convert in (to_features, lambda content: to_smaller(BytesIO(content), 20)):
            with suppress(UnreadableImage):
                convert(damaged)


# The size of the upright image and how far its gray levels may be from those of `reference.png`; None if they differ.
REFERENCE: dict[str, float | None] = {
    **dict.fromkeys(["12 bit in 16.png", "12 bit in 16.tif", "16 bit full.tif", "16 bit whiteiszero.tif"], 0.5),
    **dict.fromkeys(["16 bit signed.tif", "uint32.tif", "float32 0..1.tif", "hot pixel uint32.tif"], 0.5),
    **dict.fromkeys(["float64.tif", "float32 rgb.tif", "rgb 16 bit.png", "rgb 16 bit.tif", "12 bit.jpg"], 0.5),
    **dict.fromkeys(["rgb+nir 4 bands.tif", "5 bands uint8.tif", "thumbnail first.tif", "photoshop lab.tif"], 0.5),
    **dict.fromkeys(["bmp 32 alpha zero.bmp", "bmp 32 top down.bmp", "mono8.bmp", "8 bit whiteiszero.tif"], 0),
    **dict.fromkeys(["bigtiff.tif", "planar separate.tif", "zstd.tif", "jpeg2000 in tiff.tif", "cmyk.tif"], 0.5),
    **dict.fromkeys(["xray.dcm", "dicom named.jpg", "scan.jp2", "reference.png", "png named.jpg"], 0.5),
    **dict.fromkeys(["iphone.heic", "iphone heic named.jpg", "android.avif", "new.jxl", "jpeg named.png"], 1.5),
    **dict.fromkeys(["no end marker.jpg", "trailing bytes.jpg", "arithmetic.jpg", "cmyk adobe.jpg"], 1.5),
    **dict.fromkeys(["ultrahdr.jpg", "webp named.jpg", "display p3.jpg", "animated first blank.gif"], 2),
    "cmyk with profile.jpg": 9.6,  # its gamut is smaller than that of the reference
}
TURNED = ("rotated6.jpg", "rotated6.webp", "rotated6 eXIf after pixels.png")
BY_SIZE = {
    "61 megapixels.jpg": (9504, 6336),
    "200 megapixels.jpg": (16320, 12240),
    "tall.png": (1, 30000),
    "1x1.png": (1, 1),
    **dict.fromkeys(["1 bit.bmp", "fax g4.tif", "3 pages, first blank.tif", "half transparent.png"], SIZE),
    **dict.fromkeys(["white logo on transparent.png", "jpeg in tiff.tif"], SIZE),
}
QUARANTINED = {
    "bom before.png": "PNG behind 3 bytes",
    "newline before.jpg": "JPEG behind 2 bytes",
    "cut at 95 percent.jpg": "cut short",
    "half.jpg": "cut short",
    "document.pdf.jpg": "PDF",
    "empty.jpg": "empty",
    "git lfs pointer.jpg": "git lfs pull",
    "page.jpg": "HTML",
    "vector.svg.jpg": "SVG",
}


def shared_file(name: str) -> bytes:
    if not CASES.is_dir():
        pytest.skip(f"no files in {CASES}")
    return (CASES / name).read_bytes()


def test_every_reported_file_is_in_a_table() -> None:
    if not CASES.is_dir():
        pytest.skip(f"no files in {CASES}")
    assert {file.name for file in CASES.iterdir()} == {*REFERENCE, *TURNED, *BY_SIZE, *QUARANTINED}


@pytest.mark.parametrize("name", [*REFERENCE, *TURNED])
def test_a_reported_file_looks_like_the_reference(name: str) -> None:
    content, reference = shared_file(name), gray_of(shared_file("reference.png"))
    gray = gray_of(to_grayscale(content))
    if name in TURNED:
        assert to_features(content).orientation == 6
        reference = np.rot90(reference, -1)
    assert gray.shape == reference.shape
    assert np.abs(gray - reference).mean() <= REFERENCE.get(name, 2)


@pytest.mark.parametrize("name", BY_SIZE)
def test_a_reported_file_has_its_size_and_is_not_blank(name: str) -> None:
    content = shared_file(name)
    features = to_features(content)
    assert (features.width, features.height) == BY_SIZE[name]
    assert name in ("1x1.png", "tall.png") or np.ptp(to_pixels(content, 64)) > 100


@pytest.mark.parametrize("name", QUARANTINED)
def test_a_reported_file_is_refused_with_what_helps(name: str) -> None:
    content = shared_file(name)
    with pytest.raises(UnreadableImage, match=QUARANTINED[name]):
        to_features(content)
    assert (not_an_image(content[:512]) is None) == ("cut short" in QUARANTINED[name])
