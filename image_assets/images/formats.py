"""What a file is by its first bytes: an image format that is read, or something else that its user has to know.

This file stands alone: a copy is stored with every model version.
"""

import base64
import binascii
import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal

from PIL import Image

# By their first bytes; `format_of` recognizes the others.
SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JXL",
    b"\xff\x0a": "JXL",
    # DICOM without its preamble: the first elements of groups 2 and 8.
    b"\x02\0\0\0UL": "DICOM",
    b"\x08\0\x05\0": "DICOM",
    b"\x08\0\x08\0": "DICOM",
}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF", "JPEG2000", "JXL", "DICOM")
SUFFIXES = {"HEIF": "heic", "JPEG2000": "jp2", "DICOM": "dcm"}  # of formats that are not called by theirs
SIGNATURE_BYTES = 512  # enough for the signature of DICOM, and to tell texts apart
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
END_BYTES = 64 * 1024  # how much may follow the last bytes of a complete file
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
PADDING = b"\0\r\n "  # what may follow the end of a GIF
MARKER = re.compile(rb"\xff[^\0\x01\xd0-\xd7\xff]")  # of a JPEG, without those that no length follows
END_OF_IMAGE, START_OF_SCAN = 0xD9, 0xDA  # the latter is in front of the pixels
HEADER_BYTES = 4096  # read at a time
START_OF_JXL = b"\xff\x0a"
SIZE_BYTES = 12  # of the start of a JPEG XL, in which its size is
RATIOS_OF_JXL = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height, by number

TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What decoders raise for broken files: their own errors, and those of parsers that meet missing or invalid bytes.
BROKEN = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError),
    *(AttributeError, AssertionError, RuntimeError, struct.error, zlib.error),
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Reason = Literal["empty", "not_an_image", "too_many_pixels", "undecodable", "decompression_bomb"]

CONVERT = "convert it to PNG, TIFF or JPEG"
EXPORT = "export it as PNG, TIFF or JPEG from the program that made it"
FRAMES = "save the frames that you need as images, for example with ffmpeg"
UNPACK = "unpack it, and put the images in it into the folder"
RAW = "export it as JPEG or TIFF with the camera's software or a raw converter"
# First bytes of what is often among images or named like one, what it is, and what helps.
FOREIGN = (
    (b"\0\x05\x16\x07", "a macOS resource fork (AppleDouble)", "delete it: the photograph is in the file without `._`"),
    (b"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` in the repository that it comes from"),
    (b"%PDF", "a PDF document", "export its pages as images"),
    (b"%!PS", "a PostScript file", "export its pages as images"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file", "export it as PNG or TIFF"),
    (b"8BPS", "a Photoshop document (PSD)", EXPORT),
    (b"gimp xcf", "a GIMP document (XCF)", EXPORT),
    (b"PK\x03\x04", "a ZIP archive or an Office document", UNPACK),
    (b"\x1f\x8b", "gzip-compressed", "unpack it with gunzip"),
    (b"BZh", "bzip2-compressed", UNPACK),
    (b"\xfd7zXZ\0", "xz-compressed", UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video", FRAMES),
    (b"\0\0\x01\xba", "an MPEG video", FRAMES),
    (b"\0\0\x01\xb3", "an MPEG video", FRAMES),
    (b"FLV\x01", "a Flash video", FRAMES),
    (b"0&\xb2u\x8ef\xcf\x11", "a Windows Media video", FRAMES),
    (b"OggS", "an Ogg video or audio file", FRAMES),
    (b"ID3", "an audio file", "delete it"),
    (b"FUJIFILMCCD-RAW", "a camera raw file (Fujifilm RAF)", RAW),
    (b"IIRO", "a camera raw file (Olympus ORF)", RAW),
    (b"IIRS", "a camera raw file (Olympus ORF)", RAW),
    (b"IIU\0", "a camera raw file (Panasonic RW2)", RAW),
    (b"FOVb", "a camera raw file (Sigma X3F)", RAW),
    (b"II\x1a\0\0\0HEAPCCDR", "a camera raw file (Canon CRW)", RAW),
    (b"\x89PNG\n\x1a\n", "a PNG whose line breaks were converted", "copy it again in binary mode"),
    (b"\x89PNG\r\r\n", "a PNG whose line breaks were converted", "copy it again in binary mode"),
    (b"\0\0\x01\0", "a Windows icon", CONVERT),
    (b"icns", "a macOS icon", CONVERT),
    (b"\x76\x2f\x31\x01", "an OpenEXR image", CONVERT),
    (b"#?RADIANCE", "a Radiance HDR image", CONVERT),
    (b"SIMPLE  =", "a FITS image", "convert it to TIFF"),
    (b"DDS ", "a DirectDraw surface", CONVERT),
    (b"qoif", "a QOI image", CONVERT),
    (b"II\xbc\x01", "a JPEG XR image", CONVERT),
    (b"AT&TFORM", "a DjVu document", "export its pages as images"),
    (b"\x93NUMPY", "a NumPy array", "save it as PNG or TIFF, for example with Pillow"),
    (b"\x89HDF", "an HDF5 file", "save the images in it as PNG or TIFF"),
    (b"bplist", "a macOS property list", "delete it"),
    *((f"P{number}".encode(), "a Netpbm image", CONVERT) for number in range(1, 8)),
)


class UnreadableImage(ValueError):
    """Content that is not a complete image within the limits; `reason` is one word."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, reason)  # both are args, so that it survives pickling
        self.reason: Reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """An image as stored, turned upright by its EXIF orientation."""
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def format_of(start: bytes) -> str | None:
    """The image format by a file's first SIGNATURE_BYTES; None if it is not supported."""
    if start.startswith(b"RIFF"):
        return "WEBP" if start[8:12] == b"WEBP" else None
    if start[4:8] == b"ftyp":
        return _format_of_brands(start)
    if start[128:132] == b"DICM":
        return "DICOM"
    if start[:4] == b"II*\0" and start[8:10] == b"CR":  # a Canon raw file
        return None
    return next((name for signature, name in SIGNATURES.items() if start.startswith(signature)), None)


def suffix_of(name: str) -> str:
    """The usual suffix of files in a format."""
    return f".{SUFFIXES.get(name, name.lower())}"


def not_an_image(start: bytes) -> str | None:
    """Why a file with these first SIGNATURE_BYTES is not an image, and what helps; None if it may be one."""
    if not start:
        return "0 bytes: the file is empty; copy it again"
    if format_of(start) is not None:
        return None
    what, remedy = _kind_of(start)
    return f"it is {what}, not an image: expected one of {', '.join(FORMATS)}; {remedy}"


def undecodable(what: str, error: Exception | str, *, complete: bool | None) -> UnreadableImage:
    """The error for an image that cannot be decoded.

    Args:
        what: What it is, such as its format and size.
        error: What the decoder said.
        complete: Whether the file has its end, as `is_complete` found.
    """
    text = to_one_line(error)
    # Only the message tells that a PNG's texts or color profiles exceed Pillow's limits when inflated.
    if "MAX_TEXT" in text:
        message = f"{what} cannot be decoded ({text}): save the image without text metadata"
        return UnreadableImage(message, "decompression_bomb")
    remedies = {
        False: "the file is cut short: copy the file again",
        True: "the file has its end, so another copy would be the same: save it again with another program",
        None: "copy the file again, or save it again with another program",
    }
    return UnreadableImage(f"{what} cannot be decoded completely ({text}): {remedies[complete]}", "undecodable")


def to_one_line(error: Exception | str) -> str:
    """The library's message, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def is_complete(file: BinaryIO, name: str | None) -> bool | None:
    """Whether a file of this format has its end; None if the format does not tell."""
    length = file.seek(0, os.SEEK_END)
    if name == "JPEG":
        return _has_end_of_jpeg(file)
    if name in ENDS:
        file.seek(max(0, length - END_BYTES))
        end = file.read()
        if name == "GIF":  # decoders need no trailer, and ignore what follows it
            return end.rstrip(PADDING).endswith(ENDS[name]) or None
        return ENDS[name] in end
    file.seek(0)
    start = file.read(12)
    if name == "WEBP":
        return int.from_bytes(start[4:8], "little") + 8 <= length
    if name == "BMP":
        return int.from_bytes(start[2:6], "little") <= length
    if name in ("HEIF", "AVIF") or (name in ("JPEG2000", "JXL") and start[:2] == b"\0\0"):
        return _boxes_fit(file, length)
    return None


def size_of_jxl(content: bytes) -> tuple[int, int]:
    """The width and height in the header of JPEG XL, as ISO/IEC 18181-1 writes them: bits, the lowest first."""
    bits = int.from_bytes(_start_of_jxl(content)[len(START_OF_JXL) :], "little")

    def taken(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    is_small = taken(1)

    def side() -> int:
        return 8 * (1 + taken(5)) if is_small else 1 + taken((9, 13, 18, 30)[taken(2)])

    height = side()
    ratio = taken(3)
    across, down = RATIOS_OF_JXL[ratio]
    return height * across // down if ratio else side(), height


def _start_of_jxl(content: bytes) -> bytes:
    """The first bytes of the image itself; a file with boxes has it in one, or split anywhere over several."""
    if content.startswith(START_OF_JXL):
        return content[:SIZE_BYTES]
    position, found = 0, b""
    while len(found) < SIZE_BYTES and position + 8 <= len(content):
        size, kind = int.from_bytes(content[position : position + 4], "big"), content[position + 4 : position + 8]
        size, head = (int.from_bytes(content[position + 8 : position + 16], "big"), 16) if size == 1 else (size, 8)
        end = position + size if size else len(content)
        if kind in (b"jxlc", b"jxlp"):
            start = position + head + 4 * (kind == b"jxlp")  # after the number of the part
            found += content[start : min(end, start + SIZE_BYTES)]
        if end < position + head:
            break
        position = end
    if not found.startswith(START_OF_JXL):
        raise ValueError("it has no box with an image")
    return found[:SIZE_BYTES]


def jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG up to the start of its pixels: the marker, and the offset and length of what follows it.

    As decoders do, it skips any bytes in front of a marker.
    """
    position = 2
    while True:
        file.seek(position)
        block = file.read(HEADER_BYTES)
        found = MARKER.search(block)
        if not found:
            if len(block) < HEADER_BYTES:
                return
            position += len(block) - 1  # the last byte may be the first one of a marker
            continue
        marker = block[found.end() - 1]
        position += found.end()
        file.seek(position)
        length = int.from_bytes(file.read(2), "big")
        if marker == END_OF_IMAGE or length < 2:
            return
        yield marker, position + 2, length - 2
        if marker == START_OF_SCAN:
            return
        position += length


def _has_end_of_jpeg(file: BinaryIO) -> bool:
    """Whether an end marker follows the start of the pixels; that of a thumbnail in the header comes before."""
    start = next((offset + length for marker, offset, length in jpeg_segments(file) if marker == START_OF_SCAN), None)
    if start is None:
        return False
    # Much may follow it, such as other images or the video of a motion photo.
    near_end = max(start, file.seek(0, os.SEEK_END) - END_BYTES)
    return _contains(file, ENDS["JPEG"], near_end) or (near_end > start and _contains(file, ENDS["JPEG"], start))


def _contains(file: BinaryIO, pair: bytes, position: int) -> bool:
    """Whether the two bytes are in the file from the position on."""
    file.seek(position)
    before = b""
    while block := file.read(END_BYTES):
        if pair in before + block:
            return True
        before = block[-1:]
    return False


def _boxes_fit(file: BinaryIO, length: int) -> bool:
    """Whether the boxes of an ISO base media file end where it ends, or before."""
    position = 0
    while position < length:
        file.seek(position)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        if size == 0:  # up to the end of the file
            return True
        if size < 8:  # no box: trailing bytes
            return position > 0
        position += size
    return position == length


def _format_of_brands(start: bytes) -> str | None:
    end = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[index : index + 4] for index in (8, *range(16, end, 4))}
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & HEIF_BRANDS else None


def _kind_of(start: bytes) -> tuple[str, str]:
    """What a file that is not an image is, and what helps."""
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        if start[8:11] == b"crx":
            return "a camera raw file (Canon CR3)", RAW
        return "an MP4 or QuickTime video", FRAMES
    if start[:4] == b"RIFF":
        return ("an AVI video", FRAMES) if start[8:12] == b"AVI " else ("a RIFF file without an image", "delete it")
    if start[:4] == b"II*\0":
        return "a camera raw file (Canon CR2)", RAW
    if start[257:262] == b"ustar":
        return "a tar archive", UNPACK
    for signature, what, remedy in FOREIGN:
        if start.startswith(signature):
            return what, remedy
    return _kind_of_text(start)


def _kind_of_text(start: bytes) -> tuple[str, str]:
    blank = len(start) - len(start.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n\t \0"))
    inner = start[blank:]
    if not inner:
        return "nothing but zero bytes or spaces", "copy the file again: it was created but never filled"
    if blank and (found := format_of(inner)):
        what = f"a {found} behind {blank} bytes that do not belong to it ({start[:blank][:8]!r})"
        return what, f"remove them, for example with `tail -c +{blank + 1}`, or save the file again in binary mode"
    head = inner.lower()
    if b"<svg" in head:
        return "an SVG drawing", "export it as PNG"
    if head.startswith((b"<!doctype html", b"<html")) or b"<html" in head or b"<head" in head:
        return "an HTML page, such as the error or login page of a web site", "download the image itself again"
    if head.startswith(b"<?xml"):
        return "an XML file", "delete it, or put the image that it belongs to into the folder"
    if found := _format_in_base64(inner):
        return f"a {found} as base64 text", "decode it, for example with `base64 -d`"
    if head.startswith((b"{", b"[")):
        return "a JSON file", "delete it, or put the image that it belongs to into the folder"
    if _is_text(inner):
        return f"a text file that starts with {inner[:24]!r}", "replace it with the image"
    return f"an unknown kind of file that starts with {start[:8]!r}", CONVERT


def _format_in_base64(start: bytes) -> str | None:
    encoded = start.partition(b"base64,")[2] if start.startswith(b"data:") else start
    try:
        return format_of(base64.b64decode(encoded[:64].strip(), validate=True))
    except (binascii.Error, ValueError):
        return None


def _is_text(start: bytes) -> bool:
    try:
        text = start[:-4].decode() if len(start) > 4 else start.decode()  # the last letter may be cut in two
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\r\n\t" for letter in text)
