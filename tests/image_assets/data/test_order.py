"""A step of the data's path imports earlier steps only, and each asset is in the file of its name."""

from importlib import import_module

import dagster as dg
import grimp
import pytest

from definitions import defs

# The order in which images become a training cache; the files that belong to no step are used by several.
STEPS = [
    "image_files",
    "ingestion",
    "replayed_files",
    "raw_images",
    "label_corrections",
    "labels",
    "given_labels",
    "featured_images",
    "grayscale_images",
    "image_splits",
    "training_cache",
    "validation_cache",
]
MADE_FROM_ROWS = {"tensorflow_model", "torch_model"}  # one function makes both, from the rows of frameworks.py


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("image_assets")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_imports_no_later_step(imports: grimp.ImportGraph, step: str) -> None:
    later = {f"image_assets.data.{name}" for name in STEPS[STEPS.index(step) + 1 :]}
    assert imports.find_upstream_modules(f"image_assets.data.{step}") & later == set()


def test_each_asset_is_in_the_file_of_its_name() -> None:
    graph = defs.resolve_asset_graph()
    keys = {key: graph.get(key).group_name for key in graph.get_all_asset_keys()}
    assert len(keys) > len(MADE_FROM_ROWS)
    for key, group in keys.items():
        name = key.to_user_string()
        if name not in MADE_FROM_ROWS:
            asset = getattr(import_module(f"image_assets.{group}.{name}"), name)
            assert key in (asset.keys if isinstance(asset, dg.AssetsDefinition) else {asset.key})
