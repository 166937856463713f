"""How many images came on which day is told by the ledger, of the last days only."""

from datetime import date
from pathlib import Path

from image_assets.data.featured_images import arrivals, arrivals_metadata
from image_assets.data.image_splits import splits_metadata
from image_assets.data.label_corrections import Correction, append_corrections
from image_assets.schemas import IMAGE_FILES
from resources.delta.delta_tables import DeltaTables
from resources.files.file_system import to_path
from tests.gallery.small_home import NOON, append, landed, write_photographs
from tests.support.images import png

MAY_4 = date(2026, 5, 4)


def place(landing: Path) -> str:
    return to_path(str(landing).encode())


def test_current_files_are_counted_by_day_and_label_also_days_without_any(
    delta_tables: DeltaTables, landing: Path
) -> None:
    images = write_photographs(delta_tables, landing, 5)
    late = landed(landing, "late.png", png(90), 0) | {"first_seen": NOON.replace(day=6)}
    broken = landed(landing, "roses/broken.png", b"", 0) | {"state": "quarantined"}
    append(delta_tables, IMAGE_FILES, [late, broken])
    found = arrivals(delta_tables, place(landing), date(2026, 5, 7))
    assert found.index.tolist() == [MAY_4, date(2026, 5, 5), date(2026, 5, 6)]
    assert found.to_dict("list") == {"no label": [0, 0, 1], "roses": [3, 0, 0], "tulips": [2, 0, 0]}
    append_corrections(delta_tables, [Correction(images[0]["path"], images[0]["image_id"], "tulips", "roses", "Ada")])
    corrected = arrivals(delta_tables, place(landing), date(2026, 5, 7))
    assert (corrected["roses"].tolist(), corrected["tulips"].tolist()) == ([2, 0, 0], [3, 0, 0])


def test_what_came_long_ago_is_not_read(delta_tables: DeltaTables, landing: Path) -> None:
    assert arrivals_metadata(delta_tables, place(landing)) == {}, "no table yet"
    write_photographs(delta_tables, landing, 6)
    assert len(arrivals(delta_tables, place(landing), date(2026, 7, 2))) == 1
    assert arrivals(delta_tables, place(landing), date(2026, 7, 3)).empty


def test_splits_are_counted_and_drawn(delta_tables: DeltaTables, landing: Path) -> None:
    assert splits_metadata(delta_tables) == {}
    write_photographs(delta_tables, landing, 12)
    found = splits_metadata(delta_tables)
    assert {name: found[name].value for name in ("images_training", "images_test")} == {
        "images_training": 10,
        "images_test": 2,
    }
    assert str(found["splits"].value).startswith("12 labelled images")
