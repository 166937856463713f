"""The tables that a demo prints."""

import socket
from collections import Counter

from image_assets.data.raw_images import skipped_metadata
from resources.files.listing import Skipped
from scripts.demo import available_port, chosen, skipped_rows


def test_what_the_listing_skipped_is_printed_most_frequent_first() -> None:
    skipped = Skipped(Counter({".mov": 3, ".txt": 1}), Counter({"._*": 20}), Counter({"@eaDir": 7}))
    assert skipped_rows({"image_files": skipped_metadata(skipped)}) == [
        ("._*", "excluded files", "20"),
        ("@eaDir", "excluded folders", "7"),
        (".mov", "other files", "3"),
        (".txt", "other files", "1"),
    ]
    assert skipped_rows({"image_files": skipped_metadata(Skipped())}) == skipped_rows({}) == [("none",)]


def test_the_examples_take_turns_among_the_predicted_labels() -> None:
    labels = {"d.png": "cat", "a.png": "cat", "b.png": "cat", "c.png": "dog", "e.png": "cat", "f.png": "cat"}
    rows = [{"path": path, "label": label, "probability": 0.5} for path, label in labels.items()]
    assert [row["path"] for row in chosen(rows)] == ["a.png", "c.png", "b.png", "d.png", "e.png"]
    assert chosen([]) == []


def test_the_gallery_takes_another_port_if_its_own_is_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        used = other.getsockname()[1]
        assert available_port(used) != used
    assert available_port(used) == used
