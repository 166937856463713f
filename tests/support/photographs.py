"""Real photographs and weights, where this machine has some."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "flowers_224"
WEIGHTS = ROOT.parent / "shared" / "weights"


def photographs(label: str) -> list[Path]:
    """The label's photographs, always in the same order."""
    return sorted((PHOTOGRAPHS / label).glob("*.jpg"))
