"""Where a run's time goes: the methods of the resources, timed while a benchmark looks."""

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
from resources.delta.thin_tables import ThinTables
from resources.files.image_folder import ImageFolder

BROUGHT = ("collect", "toPandas", "count", "isEmpty")  # what makes Spark compute and bring rows to the driver


class Clock:
    """Seconds by part, without those of the parts inside it: together they are never more than what passed.

    A stream hands its batches to another thread, while the first one waits: one stack serves both.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inside: list[float] = []  # for each part that is going on, what the parts inside it took

    def timed(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The method, whose calls are timed under its name and the table that it is called with."""

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
    """The methods that a class itself offers."""
    return [name for name, value in vars(of).items() if inspect.isfunction(value) and not name.startswith("_")]


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Time what the resources do inside; only here, and put back afterwards."""
    clock = Clock()
    methods = [(of, name) for of in (DeltaTables, ThinTables, ImageFolder) for name in public_methods(of)]
    methods += [(DataFrame, name) for name in BROUGHT]
    before = {(of, name): vars(of)[name] for of, name in methods}
    try:
        for (of, name), method in before.items():
            setattr(of, name, clock.timed(method, name))
        yield clock.seconds
    finally:
        for (of, name), method in before.items():
            setattr(of, name, method)
