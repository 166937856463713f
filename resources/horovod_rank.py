"""What surrounds a function on a Horovod rank: its log lines on stdout, its failure in a form the driver reads.

No Dagster here: every rank imports this file.
"""

import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

FAILURE_MARK = "image_assets rank failure: "


@dataclass(frozen=True)
class Failure:
    """An exception that ended a rank: its type, its message, and the traceback."""

    type: str
    message: str
    trace: str

    def to_line(self) -> str:
        """The failure on one line of stderr."""
        return FAILURE_MARK + json.dumps(asdict(self))

    @property
    def is_consequence(self) -> bool:
        """Whether the rank only ended because another one did."""
        return self.type == "HorovodInternalError" or "Horovod has been shut down" in self.message


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
