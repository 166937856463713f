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
    Case("jpeg_xl", "JPEG XL", "read; the first frame of an animation, not counted"),
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
    Case("lists", "A list of paths, bytes or pixels; a single path; the bytes of one file", "one row for each image"),
    Case(
        "pixels", "Pixels: integers from 0 to 255, (height, width, 3) or (images, height, width, 3)", "as from a file"
    ),
    Case("other_pixels", "Other pixels: floats, 16 bits, channels first", "an error that says what is expected"),
    Case("no_column", "A frame without the columns `content` and `path`", "an error that names both"),
    Case("base64_predicted", "base64 text in `content`", "decoded; null if it is not base64"),
    Case("path_objects", "`pathlib.Path` in `path`", "read"),
    Case("bytes_like", "`bytearray` and `memoryview` in `content`", "read"),
    Case("unreadable", "Rows without an image: null, numbers, text, pipes, missing files", "nulls in that row"),
)
# The names of these cases are test functions, in TESTS.
FOLDERS = (
    Case(
        "test_first_level_folders_are_splits_if_all_are_named_so",
        "Folders `train`, `val` and `test` with the labels below",
        "labels from below, splits as given",
    ),
    Case(
        "test_the_level_says_which_folder_is_the_label",
        "Labels deeper down: `2023/roses`, `photos/daisy`",
        "`IMAGE_ASSETS_LABEL_LEVEL` chooses the level; a check suggests it",
    ),
    Case(
        "test_photographs_are_taken_in_and_everything_skipped_is_counted",
        "Hidden files, trash, thumbnails, `@eaDir`, `__MACOSX`, videos, other suffixes",
        "skipped and counted",
    ),
    Case(
        "test_litter_of_an_older_home_is_excluded_and_the_photographs_stay",
        "Files that an earlier release imported and that are excluded now",
        "`missing`, with the reason `excluded`",
    ),
    Case(
        "test_links_have_the_label_of_their_own_folder_if_followed",
        "Symbolic links",
        "quarantined: `not_regular`; followed to folders in `IMAGE_ASSETS_LINK_ROOTS`",
    ),
    Case("test_loops_of_links_end", "Links in a circle", "each folder is listed once"),
    Case(
        "test_labels_that_look_the_same_are_listed_with_their_images",
        "Labels that differ only in case, spaces or Unicode form",
        "a check lists them; `IMAGE_ASSETS_MERGE_LABELS=on` merges them",
    ),
    Case("test_a_label_is_the_name_on_disk", "Folder names with line breaks, `%`, emoji", "labels are the real names"),
    Case("test_a_renamed_label_folder_keeps_splits", "A renamed label folder", "image ids and splits stay"),
    Case(
        "test_small_labels_are_left_out_of_training_and_block_nothing",
        "Labels with one or two images",
        "left out of training, with a warning",
    ),
    Case(
        "test_an_unreadable_folder_is_told_once_and_the_files_in_it_keep_their_state",
        "A folder that cannot be read",
        "its files keep their state; a check warns",
    ),
    Case(
        "test_many_missing_files_or_an_empty_folder_are_not_believed",
        "A folder that is suddenly empty, such as an unmounted disk",
        "the run stops before it writes anything",
    ),
    Case(
        "test_times_that_tables_cannot_hold_change_nothing_once_they_are_recorded",
        "Files from before year 1 or after year 9999",
        "affect no other file",
    ),
)
LABEL_TABLES = (
    Case(
        "test_a_csv_file_is_read_whatever_its_delimiter_and_encoding",
        "CSV with commas, semicolons or tabs; UTF-8, UTF-16, Windows-1252",
        "read; a guessed encoding is reported",
    ),
    Case(
        "test_usual_column_names_are_recognized_and_others_are_attributes",
        "Columns called `file`, `filename`, `class`, `category` and the like",
        "recognized; other columns can be filtered by",
    ),
    Case(
        "test_one_column_of_0_and_1_per_label_gives_the_labels",
        "One column of 0 and 1 per label (one-hot)",
        "recognized; a table with several labels per image is refused",
    ),
    Case(
        "test_a_path_finds_the_file_that_it_means",
        "Backslashes, `./`, other folders before, other case, no suffix",
        "matched and counted",
    ),
    Case("test_both_unicode_forms_are_the_same_name", "Names in NFC and NFD", "matched and counted"),
    Case(
        "test_a_path_that_may_be_that_of_several_files_is_not_guessed",
        "A path that two files could have",
        "`ambiguous`: neither gets the label",
    ),
    Case("test_a_bad_row_is_named_and_the_others_are_read", "Rows with too few or too many values", "named, skipped"),
    Case(
        "test_labels_that_look_like_mistakes_are_warned_about",
        "`nan`; several labels in one; `Roses` beside `roses`",
        "a check warns",
    ),
    Case("test_an_image_of_coco_has_the_categories_of_its_annotations", "COCO", "read; one label for each image"),
    Case("test_a_task_of_label_studio_has_the_choices_of_its_annotations", "Exports of Label Studio", "read"),
    Case("test_an_image_of_cvat_has_its_tags_or_else_the_labels_of_its_shapes", "CVAT for images", "read"),
    Case("test_lines_of_json_are_read_and_bad_ones_named", "Hugging Face's `metadata.jsonl`", "read"),
)
DUPLICATES = (
    Case(
        "test_edits_are_found",
        "A photograph resized, recompressed, mirrored, cropped to 90 %, rotated by 3° or brightened",
        "in the same split as the original",
    ),
    Case("test_shots_of_a_fixed_camera_are_not_one_photograph", "Parts under a fixed camera", "not grouped"),
    Case("test_discs_of_another_color_are_not_one_photograph", "Images that differ in color only", "not grouped"),
    Case(
        "test_images_with_the_same_value_in_a_column_are_grouped",
        "Several images of a part or patient, named by a column",
        "`IMAGE_ASSETS_GROUP_BY` keeps them in one split",
    ),
    Case("test_photographs_that_follow_each_other_closely_are_a_burst", "Bursts", "grouped by `captured_at`"),
)
TESTS = {"Folders": FOLDERS, "Label tables": LABEL_TABLES, "Duplicates and splits": DUPLICATES}
SECTIONS = {
    "Formats": FORMATS,
    "Pixel values": PIXEL_VALUES,
    "Predictions by a registered version": PREDICTIONS,
    **TESTS,
}
