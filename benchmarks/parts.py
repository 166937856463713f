"""Where a run's time goes: times the methods of the resources during a benchmark."""

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pyspark.sql.classic.dataframe import DataFrame

from resources.delta.delta_tables import DeltaTables
from resources.delta.table import Table
from resources.files.image_folder import ImageFolder

BROUGHT = (
    "collect",
    "toPandas",
    "count",
    "isEmpty",
)  # the calls that make Spark compute and send results to the driver


class Clock:
    """Seconds per part, excluding nested parts, so that their sum never exceeds the time elapsed.

    A stream processes its batches in another thread while the first one waits, so one stack serves both.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside: list[float] = []  # for each active part, the seconds of its nested parts

    def timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The method with its calls timed, under its name and the table it is called with."""

        @functools.wraps(method)
        def call(*args: Any, **more: Any) -> Any:
            tables = [value.name for value in (*args, *more.values()) if isinstance(value, Table)]
            part = " ".join([name, *tables[-1:]])
            self.inside.append(0.0)
            started = time.perf_counter()
            try:
                return method(*args, **more)
            finally:
                took = time.perf_counter() - started
                self.seconds[part] += took - self.inside.pop()
                if self.inside:
                    self.inside[-1] += took

        return call


def public_methods(of: type) -> list[str]:
    """The public methods defined in a class itself."""
    return [name for name, value in vars(of).items() if inspect.isfunction(value) and not name.startswith("_")]


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Time the resources' methods within the block; the original methods are restored afterwards."""
    clock = Clock()
    methods = [(of, name) for of in (DeltaTables, ImageFolder) for name in public_methods(of)]
    methods += [(DataFrame, name) for name in BROUGHT]
    before = {(of, name): vars(of)[name] for of, name in methods}
    try:
        for (of, name), method in before.items():
            setattr(of, name, clock.timed(method, name))
        yield clock.seconds
    finally:
        for (of, name), method in before.items():
            setattr(of, name, method)
