"""The rules of the layout that no linter checks. Each exception has its reason beside it."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_assets.models.backbones import BACKBONES
from image_assets.models.frameworks import FRAMEWORKS
from image_assets.models.logged_models import DECODING

ROOT = Path(__file__).parents[1]
OURS = ("definitions", "image_assets", "resources", "sensors", "gallery", "scripts")
FILES = sorted([ROOT / "definitions.py", *(file for folder in OURS for file in (ROOT / folder).rglob("*.py"))])
NAMES = [file.relative_to(ROOT).as_posix() for file in FILES]

FRAMEWORK_WORDS = re.compile(r"tensorflow|torch|keras", re.IGNORECASE)
FRAMEWORK_FILES = {
    "image_assets/models/frameworks.py": "the table",
    **{
        f"image_assets/models/{name}_{part}.py": "its own"
        for name in FRAMEWORKS
        for part in ("training", "collectives", "backbones", "network")
    },
    "image_assets/models/torch_levels.py": "a layer of a backbone",
    "image_assets/models/backbones.py": "a backbone has another name and other weights in each framework",
    "image_assets/models/external_backbones.py": "asks timm, whose networks are of one framework",
    "image_assets/models/engines.py": "names a framework's file in its documentation",
    "image_assets/models/image_classifier.py": "names a framework's file in its documentation",
    "image_assets/__init__.py": "draws the assets",
    "image_assets/schemas.py": "describes a column by its values",
    "image_assets/models/training_images.py": "cites the source of a method",
    "resources/processes/distributors.py": "starts each distributor",
    "resources/processes/rank_process.py": "runs a rank for each distributor",
    "resources/processes/ranks.py": "filters the lines that libraries print",
    "resources/processes/horovod.py": "adapts Horovod, which imports the frameworks",
    "resources/training.py": "documents how a function connects its ranks",
    "resources/delta/petastorm_caches.py": "documents what Petastorm makes of a cache",
    "scripts/horovod_wheel.py": "builds Horovod against the frameworks",
    "scripts/install.py": "installs the frameworks",
    "scripts/prerequisites.py": "says how much space the frameworks need",
    "scripts/__main__.py": "says what the demo trains",
}

ARCHITECTURE_WORDS = re.compile(r"mobile_?net|res_?net|conv_?next|efficient_?net", re.IGNORECASE)
# Blocks are small numbers that mean other things elsewhere, and so does one of the numbers of features.
SIZES = {str(size) for row in BACKBONES.values() for size in (row.side_pixels, row.features)} - {"2048"}
SIZE_FILES = {
    "image_assets/models/backbones.py": "the table",
    "image_assets/models/torch_backbones.py": "takes the network of a package apart",
    "gallery/thumbnails.py": "the side of an enlarged image",
}

STORED = (
    "models/image_classifier",
    "models/engines",
    "models/novelty",
    "models/occlusion",
    *(f"models/{name}_network" for name in FRAMEWORKS),
)
STORED_FILES = [f"image_assets/{name}.py" for name in (*STORED, *(f"images/{name}" for name in DECODING))]


def imported(name: str) -> Iterator[str]:
    """The full name of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            yield from (of.name for of in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{of.name}" for of in node.names)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FRAMEWORK_FILES])
def test_only_the_table_and_a_frameworks_own_files_name_it(name: str) -> None:
    found = [line for line in (ROOT / name).read_text().splitlines() if FRAMEWORK_WORDS.search(line)]
    assert found == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SIZE_FILES])
def test_only_the_table_names_an_architecture_and_its_sizes(name: str) -> None:
    text = (ROOT / name).read_text()
    assert ARCHITECTURE_WORDS.findall(text) == []
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    assert [token.line for token in tokens if token.type == tokenize.NUMBER and token.string in SIZES] == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_imports_a_private_name_of_a_dependency(name: str) -> None:
    parts = ((module, module.split(".")) for module in imported(name))
    private = [module for module, path in parts if path[0] not in OURS and any(part.startswith("_") for part in path)]
    # typeshed's types are for type checkers, which have no public name for them.
    assert [module for module in private if not module.startswith(("__future__", "_typeshed"))] == []


@pytest.mark.parametrize("name", STORED_FILES)
def test_a_model_version_stands_alone(name: str) -> None:
    assert [module for module in imported(name) if module.split(".")[0] in OURS] == []


@pytest.mark.parametrize("name", [*FRAMEWORK_FILES, *SIZE_FILES])
def test_an_exception_is_a_file(name: str) -> None:
    assert (ROOT / name).is_file()
