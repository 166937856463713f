from pathlib import Path

from benchmarks.gallery import FILTERS, build, gallery_section
from gallery.queries import read_page
from image_assets.predictions.image_filters import Filters
from image_assets.predictions.image_index import read_index
from tests.support.tables import tables_at


def test_the_home_that_is_measured_has_what_its_filters_ask_for(tmp_path: Path) -> None:
    build(tmp_path, 300)
    index = read_index(tables_at(tmp_path / "tables"))
    counts = {
        name: read_page(index, Filters.read({key: str(value) for key, value in parameters.items()})).count
        for name, parameters in FILTERS.items()
    }
    assert counts["nothing"] == counts["the last page"] == 300
    for name in ("label", "mistakes, surest first", "versions disagree", "confidence"):
        assert 0 < counts[name] < 300, name


def test_the_figures_stand_beside_their_aims() -> None:
    answer = {"filters": {name: [10.0, 20.0] for name in FILTERS}, "new": [300.0], "kept": [50.0], "image": [40.0]}
    page = gallery_section({"count": 100_000, "runs": [{"error": None, "answer": answer}]})
    assert "## The gallery over 100,000 images" in page
    assert "| a page of 60 images, thumbnails created | 300 (300 to 300) | 500 |" in page
    assert gallery_section({"count": 1, "runs": [{"error": "no", "answer": {}}]}) == ""
