"""What surrounds a function on a rank: its log lines on stdout, its failure in a form the driver reads.

No Dagster here: every rank imports this file.
"""

import json
import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from resources.child_process import end_with

Distributor = Literal["horovod", "torch_distributor", "tensorflow_distributor"]  # what starts the ranks

FAILURE_MARK = "image_assets rank failure: "
# How Horovod, Gloo and TensorFlow say on one rank that another one is gone.
CONSEQUENCES = (
    "Horovod has been shut down",
    "onnection closed by peer",
    "onnection reset by peer",
    "Collective ops is",
)


@dataclass(frozen=True)
class Failure:
    """What ended a rank: the type of an exception, its message, and the traceback."""

    type: str
    message: str
    trace: str

    def to_line(self) -> str:
        """The failure on one line of stderr."""
        return FAILURE_MARK + json.dumps(asdict(self))

    @property
    def is_consequence(self) -> bool:
        """Whether the rank only ended because another one did."""
        return self.type == "HorovodInternalError" or any(words in self.message for words in CONSEQUENCES)


def failure_in(line: str) -> Failure | None:
    """The failure that a line of a rank's stderr tells of, if it does."""
    _, mark, told = line.partition(FAILURE_MARK)
    return Failure(**json.loads(told)) if mark else None


# Any: the function is the caller's, and so is what it takes and returns.
def call_on_rank(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the function returns; an exception is told on stderr and ends the process."""
    logger = logging.getLogger("image_assets")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        failure = Failure(type(error).__name__, str(error), traceback.format_exc())
        sys.stderr.write(f"\n{failure.to_line()}\n")
        sys.stderr.flush()
        raise SystemExit(1) from error


def answer(folder: Path) -> None:
    """Call what is pickled in the folder, and leave there what it returned."""
    from pyspark import cloudpickle

    function, args, kwargs = pickle.loads((folder / "call").read_bytes())
    (folder / "returned").write_bytes(cloudpickle.dumps(function(*args, **kwargs)))


if __name__ == "__main__":
    end_with(int(sys.argv[2]))
    call_on_rank(answer, [Path(sys.argv[1])], {})
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # a library whose threads still run aborts a Python that takes its leave of it
