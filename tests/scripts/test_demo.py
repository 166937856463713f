"""The tables that a demo prints."""

from collections import Counter

from image_assets.data.raw_images import skipped_metadata
from resources.files.listing import Skipped
from scripts.demo import skipped_rows


def test_what_the_listing_skipped_is_printed_most_frequent_first() -> None:
    skipped = Skipped(Counter({".mov": 3, ".txt": 1}), Counter({"._*": 20}), Counter({"@eaDir": 7}))
    assert skipped_rows({"image_files": skipped_metadata(skipped)}) == [
        ("._*", "excluded files", "20"),
        ("@eaDir", "excluded folders", "7"),
        (".mov", "other files", "3"),
        (".txt", "other files", "1"),
    ]
    assert skipped_rows({"image_files": skipped_metadata(Skipped())}) == skipped_rows({}) == [("none",)]
