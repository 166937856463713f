"""DICOM files: X-rays and other medical images.

This file stands alone: a copy is stored with every model version.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from .formats import UnreadableImage
from .value_range import ValueRange, find_range, to_8_bits

if TYPE_CHECKING:
    from pydicom import Dataset

# Transfer syntaxes that Pillow, with which pydicom decodes, cannot read: the decoder in imagecodecs for each.
CODECS = {
    "1.2.840.10008.1.2.4.51": "jpeg_decode",  # JPEG of 12 bits
    "1.2.840.10008.1.2.4.57": "jpeg_decode",  # lossless JPEG
    "1.2.840.10008.1.2.4.70": "jpeg_decode",
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.201": "htj2k_decode",
    "1.2.840.10008.1.2.4.202": "htj2k_decode",
    "1.2.840.10008.1.2.4.203": "htj2k_decode",
    "1.2.840.10008.1.2.4.110": "jpegxl_decode",
    "1.2.840.10008.1.2.4.112": "jpegxl_decode",
}
VIDEOS = ("1.2.840.10008.1.2.4.100", *(f"1.2.840.10008.1.2.4.10{number}" for number in range(1, 9)))
MAX_MESSAGE = 200
MAX_FRAMES = 2**31 - 1  # the limit of DICOM and of an int column
# Elements that anonymizing programs leave without a value, which means the same as no element.
OPTIONAL = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept")
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@contextmanager
def broken_as_value_errors() -> Iterator[None]:
    """Raises pydicom's own errors, which have no other base, as ValueErrors."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        yield
    except (BytesLengthException, InvalidDicomError) as error:
        raise ValueError(str(error)[:MAX_MESSAGE]) from error


class DicomImage:
    """An opened DICOM file: its header is read, its pixels are not."""

    @broken_as_value_errors()
    def __init__(self, file: BinaryIO) -> None:
        import pydicom

        file.seek(0)
        self._dataset: Dataset = pydicom.dcmread(file, force=True)
        data = self._dataset
        for name in OPTIONAL:
            if name in data and data[name].is_empty:
                del data[name]
        syntax = str(data.file_meta.get("TransferSyntaxUID", "")) if hasattr(data, "file_meta") else ""
        if "Rows" not in data or not any(name in data for name in PIXELS):
            what = str(data.get("Modality", "")) or "a report, plan or directory"
            message = f"it is a DICOM file without pixels ({what}): take it out of the folder"
            raise UnreadableImage(message, "not_an_image")
        if syntax.startswith(VIDEOS):
            raise UnreadableImage("it is a DICOM video: save the frames that you need as images", "not_an_image")
        self._syntax = syntax
        self.width, self.height = int(data.Columns), int(data.Rows)
        self.pages = int(data.get("NumberOfFrames", 1) or 1)
        if not 0 < self.pages <= MAX_FRAMES:
            raise ValueError(f"{self.pages:,} frames: expected 1 to {MAX_FRAMES:,}")
        self.photometric = str(data.get("PhotometricInterpretation", "MONOCHROME2"))
        bits = int(data.get("BitsAllocated", 8))
        color = int(data.get("SamplesPerPixel", 1)) == 3 or self.photometric == "PALETTE COLOR"
        self.mode = "RGB" if color else "L" if bits <= 8 else f"L;{bits}"

    @broken_as_value_errors()
    def image(self, page: int) -> tuple[Image.Image, ValueRange]:
        """A frame with 8 bits per channel, and the values that became black and white."""
        from pydicom.pixels import apply_color_lut, apply_modality_lut

        pixels = self._decoded(page)
        if self.photometric == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, self._dataset)
        if pixels.ndim == 3:
            found = find_range(pixels)
            return Image.fromarray(to_8_bits(pixels, found)), found
        missing = self._dataset.get("PixelPaddingValue")
        padding = np.zeros(pixels.shape, bool) if missing is None else pixels == missing
        values = np.asarray(apply_modality_lut(pixels, self._dataset))
        gray, found = self._windowed(values, padding)
        if self.photometric == "MONOCHROME1":
            gray, found = 255 - gray, found.inverted
        gray[padding] = 0
        return Image.fromarray(gray), found

    def _windowed(self, values: np.ndarray, padding: np.ndarray) -> tuple[np.ndarray, ValueRange]:
        """Gray levels by the file's first window or table of values of interest, else by its pixels."""
        from pydicom.pixels import apply_voi_lut

        data = self._dataset
        if "WindowCenter" in data and "WindowWidth" in data:
            center, width = (float(np.atleast_1d(data[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
            exact = str(data.get("VOILUTFunction", "LINEAR")) != "LINEAR"  # LINEAR counts whole values, see C.11.2.1.2
            found = ValueRange(center - width / 2, center + width / 2)
            found = found if exact else ValueRange(center - width / 2, center + width / 2 - 1)
            if found.is_usable:
                return to_8_bits(values, found), found
        if data.get("VOILUTSequence"):
            shown = np.asarray(apply_voi_lut(values, data, prefer_lut=True))
            found = ValueRange(0, 2 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1)
            return to_8_bits(shown, found), found
        found = find_range(values if padding.all() else values[~padding], bits=data.get("BitsStored"))
        return to_8_bits(values, found), found

    def _decoded(self, page: int) -> np.ndarray:
        """The stored values of a frame: (height, width), or (height, width, 3) in RGB."""
        data = self._dataset
        if self._syntax not in CODECS:
            from pydicom.pixels import pixel_array

            return np.array(pixel_array(data, index=page))
        import imagecodecs
        from pydicom.encaps import get_frame

        frame = get_frame(data.PixelData, page, number_of_frames=self.pages)
        pixels = np.asarray(getattr(imagecodecs, CODECS[self._syntax])(frame))
        if int(data.get("PixelRepresentation", 0)):  # two's complement in the bits that are stored
            shift = pixels.dtype.itemsize * 8 - int(data.BitsStored)
            pixels = (pixels << shift).view(pixels.dtype.str.replace("u", "i")) >> shift
        return pixels
