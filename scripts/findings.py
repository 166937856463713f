"""What a check of the set-up is, and what it finds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scripts.prerequisites import Missing


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    state: Literal["ok", "failed", "none"]
    detail: str


@dataclass(frozen=True)
class Check:
    """A part of the set-up: how it is tried, and what to do when it fails."""

    try_it: Callable[[], Finding]
    remedy: str


def failed_if(missing: Missing | None, detail: str) -> Finding:
    """Failed with what is missing, or ok with the detail."""
    return Finding("failed", missing.what) if missing else Finding("ok", detail)
