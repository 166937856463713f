"""What Spark's tasks have done so far, told to the driver while they run (runs in each executor, and in the driver).

A step has as many tasks as there are cores, and Spark's accumulators arrive when a task is over. A task sends a
datagram now and then: where one is lost, nothing is slower, and nothing wrong but the line that a person sees.
"""

import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from resources.progress import ProgressLine

SECONDS = 0.5  # between two datagrams of a task
MESSAGE = struct.Struct("!16sIIQ")  # the key, the stage, its partition, how much of it is done
Item = TypeVar("Item")


@dataclass(frozen=True)
class TaskCounter:
    """Counts in a task what comes by; where nobody listens it counts nothing."""

    address: tuple[str, int] | None = None
    key: bytes = b""

    def over(self, items: Iterable[Item], size: Callable[[Item], int] = lambda _: 1) -> Iterator[Item]:
        """The items as they are, each counted once the next one is asked for."""
        if self.address is None:
            yield from items
            return
        done, told = 0, time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for item in items:
                yield item
                done += size(item)
                if time.monotonic() - told >= SECONDS:
                    self._tell(sending, done)
                    told = time.monotonic()
            self._tell(sending, done)

    def over_rows(self, rows: DataFrame) -> DataFrame:
        """The rows as they are, counted by the tasks that they are in: thin ones, for they pass through Python."""
        if self.address is None:
            return rows
        return rows.mapInArrow(
            partial(self.over, size=number_of_rows),  # pyright: ignore[reportArgumentType] - pyarrow has no types
            rows.schema,
        )

    def _tell(self, sending: socket.socket, done: int) -> None:
        task = TaskContext.get()
        stage, partition = (task.stageId(), task.partitionId()) if task else (0, 0)
        with suppress(OSError):  # no way to the driver
            sending.sendto(MESSAGE.pack(self.key, stage, partition, done), self.address or ())


NOT_COUNTED = TaskCounter()


def number_of_rows(batch: pa.RecordBatch) -> int:
    """How many rows are in a batch."""
    return batch.num_rows


@contextmanager
def counted(spark: SparkSession, progress: ProgressLine) -> Iterator[TaskCounter]:
    """A counter for tasks; the progress hears of what they count while the block lasts."""
    conf, key = spark.sparkContext.getConf(), secrets.token_bytes(16)
    host = str(conf.get("spark.driver.host"))
    with progress, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        try:
            heard.bind((str(conf.get("spark.driver.bindAddress") or host), 0))
        except OSError:  # an address of another kind: the work goes on uncounted
            yield NOT_COUNTED
            return
        heard.settimeout(SECONDS)
        over = threading.Event()
        listening = threading.Thread(target=listen, args=[heard, key, progress, over], daemon=True)
        listening.start()
        try:
            yield TaskCounter((host, heard.getsockname()[1]), key)
        finally:
            over.set()
            heard.sendto(b"", heard.getsockname())  # wakes the thread
            listening.join()


def listen(heard: socket.socket, key: bytes, progress: ProgressLine, over: threading.Event) -> None:
    """Let the progress hear of all tasks together; what is not of this counter is passed over."""
    done: dict[tuple[int, int], int] = {}
    while not over.is_set():
        try:
            message = heard.recv(MESSAGE.size + 1)
        except TimeoutError:
            continue
        if len(message) == MESSAGE.size and message.startswith(key):
            _, stage, partition, count = MESSAGE.unpack(message)
            done[stage, partition] = count  # a task that is run again begins again
            progress.reach(sum(done.values()))
