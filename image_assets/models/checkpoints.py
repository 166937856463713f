"""What a training that was killed goes on from: the last finished epoch, in a file of tensors and plain values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """Arrays in named parts, and what was told beside them."""

    arrays: State
    told: dict[str, Any]

    def part(self, name: str) -> State:
        """The arrays of one part."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, a file for each of its phases."""

    folder: str

    def save(self, name: str, parts: Mapping[str, State], told: Mapping[str, Any]) -> None:
        """Keep this in place of what was kept: whole, or not at all."""
        from safetensors.numpy import save_file

        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {f"{part}/{key}": np.array(array, order="C") for part in parts for key, array in parts[part].items()}
        unnamed = file.with_suffix(".unfinished")
        save_file(arrays, unnamed, metadata={"told": json.dumps(told)})
        unnamed.replace(file)

    def load(self, name: str) -> Checkpoint | None:
        """What was kept last; None when there is nothing."""
        from safetensors import safe_open

        file = self._file(name)
        if not file.is_file():
            return None
        with safe_open(file, "numpy") as opened:
            arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
            return Checkpoint(arrays, json.loads((opened.metadata() or {})["told"]))

    def _file(self, name: str) -> Path:
        return Path(self.folder) / f"{name}.safetensors"


def digest(weights: State) -> str:
    """SHA-256 of all arrays with their names, kinds and shapes, in whatever order they come."""
    total = sha256()
    for name, array in sorted(weights.items()):
        total.update(f"{name} {array.dtype} {array.shape} ".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
