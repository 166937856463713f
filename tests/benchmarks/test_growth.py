"""Tests of generated tables, and of how the growth of a run is reported."""

from pathlib import Path

import numpy as np

from benchmarks.growth import growth_section
from benchmarks.thin_homes import columns_of, name_of, tables_of
from image_assets.schemas import IMAGE_FILES, IMAGE_SPLITS

VERSION = {"model_name": "image_classifier", "model_version": 1, "version_id": "1d"}


def test_generated_tables_have_a_row_for_each_image() -> None:
    tables = dict(tables_of(columns_of(np.arange(5, 12), Path("/landing"), 100, VERSION)))
    for table, rows in tables.items():
        assert rows.schema.names == table.columns.names
        assert len({tuple(row[key] for key in table.keys) for row in rows.to_pylist()}) == 7
        assert not any(None in (row[key] for key in table.keys) for row in rows.to_pylist())
    assert tables[IMAGE_FILES]["path"][0].as_py() == f"file:/landing/{name_of(5)}"
    assert set(tables[IMAGE_SPLITS]["split"].to_pylist()) <= {"training", "validation", "test"}


def test_the_section_has_a_row_for_each_step_that_costs_something() -> None:
    def run(cpu_seconds: float) -> dict:
        figures = {"seconds": 9.0, "cpu_seconds": cpu_seconds, "peak_megabytes": 500.0}
        steps = {"raw_images": figures, "layout": {**figures, "cpu_seconds": 0.001}}
        return {
            **{"seconds": 12.0, "cpu_seconds": cpu_seconds + 1, "peak_bytes": {"driver": 1 << 30}, "error": None},
            "answer": {"work_seconds": 10.0, "steps": steps},
        }

    section = growth_section({"new": 100, "runs": {"1000": [run(1.0)], "101000": [run(3.0), run(2.0), run(4.0)]}})
    assert "| `raw_images` | 1.00 (500 MB) | 3.00 (500 MB) | +2.00 |" in section
    assert "layout" not in section
