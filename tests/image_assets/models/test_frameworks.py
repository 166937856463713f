"""Every row of the frameworks' table has what the rest of the code expects of a framework."""

import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from image_assets.models import engines
from image_assets.models.frameworks import FRAMEWORKS, Framework, gpu_program

ROOT = Path(__file__).parents[3]
ROWS = pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)


def parameters(function: object) -> list[str]:
    """The names of a function's parameters, `self` excluded."""
    return [name for name in inspect.signature(function).parameters if name != "self"]  # pyright: ignore


@ROWS
def test_a_row_has_its_two_files_and_its_packages(framework: Framework) -> None:
    assert parameters(framework.training.train) == ["training", "validation", "plan", "locations"]
    assert parameters(framework.training.build_network) == ["plan", "collective"]
    assert parameters(framework.training.export_backbone) == ["backbone", "weights"]
    assert set(framework.training.COLLECTIVES) == set(framework.distributors)
    for name in ("count_gpus", "load_network"):
        expected = parameters(getattr(engines.NetworkCode, name))
        assert parameters(getattr(framework.network, name)) == expected, name
    assert parameters(framework.training.export_network) == ["network", "backbone", "output"]
    assert parameters(framework.network.load_embedder) == ["folder"]
    assert all(version(package) for package in framework.packages)


@ROWS
def test_the_stored_file_stands_alone(framework: Framework, tmp_path: Path) -> None:
    alone = tmp_path / "alone.py"
    alone.write_bytes(framework.network_file.read_bytes())
    program = "import alone, sys; print(alone.PACKAGE, *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={},
    )
    package, *loaded = done.stdout.split()
    assert package == framework.name
    assert not {"image_assets", "resources", *FRAMEWORKS} & set(loaded)


def test_an_unknown_framework_has_no_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", gpu_program("sklearn")], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
