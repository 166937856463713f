"""Image files of rare kinds, created in code."""

import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    """Return the image in one of Pillow's formats."""
    content = BytesIO()
    image.save(content, name, **options)
    return content.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """Return the pixels as TIFF, as tifffile writes it."""
    content = BytesIO()
    options.setdefault("photometric", "rgb" if pixels.ndim == 3 else "minisblack")
    tifffile.imwrite(content, pixels, **options)
    return content.getvalue()


def tiff_of_few_bits(pixels: np.ndarray, bits: int, **options: Any) -> bytes:
    """Return gray pixels, of less than 8 bits each, as TIFF."""
    rows = np.unpackbits(pixels[:, :, None], axis=2)[:, :, 8 - bits :].reshape(len(pixels), -1)
    content = BytesIO(tiff(np.packbits(rows, axis=1), **options))
    with tifffile.TiffFile(content, mode="r+") as file:
        tags = file.pages.first.tags
        tags["ImageWidth"].overwrite(pixels.shape[1])
        tags["BitsPerSample"].overwrite(bits)
        return content.getvalue()


def tiff_pages(*pages: np.ndarray, options: Mapping[int, Mapping[str, Any]] | None = None) -> bytes:
    """Return a TIFF of several pages; `options` by the number of the page."""
    content = BytesIO()
    with tifffile.TiffWriter(content) as file:
        for number, pixels in enumerate(pages):
            photometric = "rgb" if pixels.ndim == 3 else "minisblack"
            file.write(pixels, photometric=photometric, **(options or {}).get(number, {}))
    return content.getvalue()


def heif(image: Image.Image, **options: Any) -> bytes:
    """Return the image as HEIC."""
    import pillow_heif

    content = BytesIO()
    pillow_heif.from_pillow(image).save(content, quality=95, **options)
    return content.getvalue()


def jpeg_xl(pixels: np.ndarray) -> bytes:
    """Return the pixels as lossless JPEG XL."""
    return bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))


def png_16(pixels: np.ndarray, **chunks: bytes) -> bytes:
    """Return 16-bit gray or RGB pixels as PNG, with further chunks by name in front of the pixels."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    raw = np.hstack([np.zeros((height, 1), np.uint8), rows])
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(raw.tobytes()), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name.encode(), data) for name, data in parts.items())


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_late_exif(content: bytes, exif: bytes) -> bytes:
    """Return the PNG with its EXIF data behind the pixels."""
    end = content.rindex(b"IEND") - 4
    return content[:end] + chunk(b"eXIf", exif) + content[end:]


def bmp_with_alpha(pixels: np.ndarray) -> bytes:
    """Return a bitmap of 32 bits with masks of four channels: pixels (height, width, 4) in RGBA."""
    height, width, _ = pixels.shape
    data = np.ascontiguousarray(pixels[::-1, :, [2, 1, 0, 3]]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(data), 0, 0, 0, 0) + masks + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(data), 0, 0, 14 + len(header)) + header + data


def dicom(pixels: np.ndarray, photometric: str = "MONOCHROME2", syntax: str = "", **elements: Any) -> bytes:
    """Return a DICOM file of gray, RGB or several frames of gray pixels, with further elements by name."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    color = photometric == "RGB"
    frames = 1 if pixels.ndim == 2 or color else len(pixels)
    height, width = pixels.shape[:2] if frames == 1 else pixels.shape[1:3]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    bits = pixels.dtype.itemsize * 8
    stored = elements.get("BitsStored", bits)
    values = {
        "Rows": height,
        "Columns": width,
        "PhotometricInterpretation": photometric,
        "SamplesPerPixel": 3 if color else 1,
        "BitsAllocated": bits,
        "BitsStored": stored,
        "HighBit": stored - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"PlanarConfiguration": 0} if color else {}),
        **({"NumberOfFrames": frames} if frames > 1 else {}),
        **elements,
    }
    for name, value in values.items():
        setattr(data, name, value)
    data.PixelData = encapsulate([encoded_frame(pixels, syntax)]) if syntax else pixels.tobytes()
    content = BytesIO()
    data.save_as(content, enforce_file_format=True)
    return content.getvalue()


def encoded_frame(pixels: np.ndarray, syntax: str) -> bytes:
    """Return a frame, compressed without loss as a DICOM transfer syntax says."""
    if syntax.endswith("4.80"):
        return bytes(imagecodecs.jpegls_encode(pixels))
    if syntax.endswith(("4.57", "4.70")):
        return bytes(imagecodecs.ljpeg_encode(pixels))
    if syntax.endswith("4.201"):
        return bytes(imagecodecs.htj2k_encode(pixels))
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=0, reversible=True))
