"""What a packaged version needs, every version pinned."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SERVES = {"mlflow": "mlflow-skinny"}  # the part of MLflow that loads a model and answers for it
FOR_GPUS = ("tensorflow", "keras", "torch", "torchvision")  # on a CPU, ONNX Runtime computes
EDGE = ("onnxruntime", "pillow")


def to_requirements(version: Path) -> list[str]:
    """The lines of a requirements file for a version, in the folder that MLflow downloaded it to.

    The packages that the version names are those of its training. What they need in turn is pinned as it is installed
    here, where the former are installed in the same versions; else pip finds what fits.
    """
    named = [Requirement(line) for line in (version / "requirements.txt").read_text().splitlines() if line]
    direct = {SERVES.get(one.name, one.name): str(one.specifier) for one in named if one.name not in FOR_GPUS}
    pins = installed_with([*direct])
    if any(pins[name] != pin for name, pin in direct.items()):
        pins = direct
    return sorted(f"{name}{pin}" for name, pin in pins.items())


def to_edge_requirements() -> list[str]:
    """The lines of a requirements file for the edge file's example."""
    return [f"{name}=={metadata.version(name)}" for name in EDGE]


def installed_with(names: Sequence[str]) -> dict[str, str]:
    """The packages and all that they need, as installed here: name, and `==` with the version."""
    pins: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in pins:
            pins[name] = f"=={metadata.version(name)}"
            needs = map(Requirement, metadata.requires(name) or [])
            waiting += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return pins
