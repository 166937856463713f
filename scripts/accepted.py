"""What is accepted and how it is read: the cases of the page "What is accepted", each with a test of its name."""

from typing import NamedTuple


class Case(NamedTuple):
    """One kind of input, and what is done with it."""

    name: str
    found: str
    outcome: str


FORMATS = (
    Case("heic", "HEIC or HEIF, such as photographs of iPhones, under any suffix", "read, turned upright"),
    Case("avif", "AVIF", "read"),
    Case("jpeg_2000", "JPEG 2000", "read"),
    Case("jpeg_xl", "JPEG XL", "read"),
    Case("dicom", "DICOM: X-rays and other medical images", "read with its window; MONOCHROME1 is inverted"),
    Case("dicom_window", "DICOM with rescale and window", "values below the window are black, above it white"),
    Case("dicom_compressed", "DICOM with JPEG, lossless JPEG, JPEG-LS, JPEG 2000 or RLE", "read"),
    Case("dicom_report", "DICOM without pixels: reports, plans", "quarantined: `not_an_image`"),
    Case("mpo", "JPEG with more pictures inside: MPO, Ultra HDR gain maps", "the photograph is read; one page"),
    Case("wrong_suffix", "An image with the suffix of another format", "read as what it is"),
    Case("cmyk", "CMYK JPEG and TIFF", "read in sRGB"),
    Case("12_bit_jpeg", "JPEG with 12 bits, lossless JPEG", "read"),
    Case("no_end_marker", "JPEG that lacks its end marker, with all pixels", "read; `decode_warning` says so"),
    Case("cut_short", "Files that are cut short", "quarantined: `undecodable`, copy the file again"),
    Case("empty", "Empty files", "quarantined: `empty`"),
    Case("html", "HTML pages, saved in place of an image", "quarantined: `not_an_image`, download it again"),
    Case("lfs", "Git LFS pointers", "quarantined: `not_an_image`, run `git lfs pull`"),
    Case("apple_double", "Resource forks of macOS, called `._…`", "quarantined: `not_an_image`, delete it"),
    Case("pdf", "PDF documents", "quarantined: `not_an_image`, export its pages"),
    Case("svg", "SVG drawings", "quarantined: `not_an_image`, export it as PNG"),
    Case("video", "Videos", "quarantined: `not_an_image`, save frames"),
    Case("raw", "Camera raw files, also those that are TIFFs inside", "quarantined: `not_an_image`, export it"),
    Case("archive", "ZIP and other archives", "quarantined: `not_an_image`, unpack it"),
    Case("line_break_before", "An image behind a line break or BOM", "quarantined: `not_an_image`, remove it"),
    Case("base64", "An image as base64 text", "quarantined: `not_an_image`, decode it"),
    Case("zeros", "Zero bytes only", "quarantined: `not_an_image`, copy the file again"),
    Case("61_megapixels", "Images above 50 million pixels", "downscaled while they are decoded"),
    Case("pixel_bomb", "A small file with billions of pixels", "quarantined: `too_many_pixels`"),
    Case("pages", "TIFF with several pages, DICOM with several frames", "the first page that is not blank; counted"),
    Case("animation", "Animated GIF, WebP and PNG", "the first frame that is not blank; counted"),
    Case("thumbnail_first", "TIFF whose first image is its thumbnail", "the full image is read"),
    Case("rare_tiff", "TIFF in tiles, planes, BigTIFF, ZSTD, WebP or JPEG 2000 compression, fax", "read"),
)
PIXEL_VALUES = (
    Case("12_bits_in_16", "10, 12 or 14 bits in 16-bit values", "shown over the range of these bits"),
    Case("16_bits", "16 bits, gray or color", "0 to 65535 is black to white, the same for all colors"),
    Case("one_look", "The same values as uint16, int16, uint32 or float", "look the same"),
    Case("declared_range", "A range in the file: SMinSampleValue and SMaxSampleValue, sBIT", "is used"),
    Case("floats", "Floats from 0 to 1, gray or color, with 32 or 64 bits", "0 is black, 1 is white"),
    Case("other_floats", "Other floats, negative values", "shown from their 0.1 % to their 99.9 % percentile"),
    Case("hot_pixels", "Hot pixels", "do not decide the range"),
    Case("no_data", "NaN, GDAL_NODATA, or outliers such as -9999", "are black and do not decide the range"),
    Case("white_is_zero", "TIFF in which zero means white, at any number of bits", "shown as meant"),
    Case("profiles", "Color profiles: CMYK, Display P3, Adobe RGB", "converted to sRGB"),
    Case("lab", "Lab TIFF of Photoshop", "converted to sRGB"),
    Case("empty_alpha", "An alpha channel of zeros", "is taken as no alpha"),
    Case("transparent", "Transparent images", "laid on white, or on black if nothing would be seen"),
    Case("fourth_band", "A fourth band that is no alpha, such as infrared", "is left out"),
    Case("orientation", "EXIF orientation in JPEG, PNG, WebP, TIFF, HEIC", "turned upright"),
    Case("late_exif", "EXIF orientation behind the pixels of a PNG", "turned upright"),
    Case("both_decoders", "The same image below and above the content limit", "looks the same"),
)
PREDICTIONS = (
    Case("by_content_and_path", "An image by its bytes or by its path", "the same prediction"),
    Case("12_bits_predicted", "Images with more than 8 bits", "the same prediction as with 8 bits"),
    Case("61_megapixels_predicted", "Images above 50 million pixels", "the same prediction by bytes and by path"),
    Case("no_column", "A frame without the columns `content` and `path`", "an error that names both"),
    Case("base64_predicted", "base64 text in `content`", "decoded; null if it is not base64"),
    Case("path_objects", "`pathlib.Path` in `path`", "read"),
    Case("bytes_like", "`bytearray` and `memoryview` in `content`", "read"),
    Case("unreadable", "Rows without an image: null, numbers, text, pipes, missing files", "nulls in that row"),
)
SECTIONS = {"Formats": FORMATS, "Pixel values": PIXEL_VALUES, "Predictions by a registered version": PREDICTIONS}
