"""When it pays to join a table's small files, and which of them: never large ones for a small append.

A file is rewritten only with others that make the result several times its size, so that every byte is rewritten a
number of times that grows with the logarithm of the table's size: size-tiered compaction, as log-structured stores do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

MEBIBYTE = 1024 * 1024
SMALL_FILES = 32  # fewer are left as they are
GROWTH = 4  # what a compaction makes is this many times the largest file that goes into it


@dataclass(frozen=True)
class FileSizes:
    """Which files are small, and how large those may become that a compaction makes of them."""

    minimum_bytes: int = 48 * MEBIBYTE
    maximum_bytes: int = 192 * MEBIBYTE

    def __post_init__(self) -> None:
        """Files filled up to the largest size may not be small again, or they would be rewritten for ever."""
        if not 0 < 2 * self.minimum_bytes <= self.maximum_bytes:
            raise ValueError(
                f"files from {self.minimum_bytes:,} to {self.maximum_bytes:,} bytes: "
                "expected a largest size of at least twice the smallest, such as 48 and 192 MB"
            )


@dataclass(frozen=True)
class Compaction:
    """A table's files, and those that a compaction would rewrite: all below a size, or none."""

    files: int
    small_files: int
    rewritten_files: int
    rewritten_bytes: int
    below_bytes: int

    @property
    def pays(self) -> bool:
        """Whether there is anything worth rewriting."""
        return self.rewritten_files > 0


def advise(sizes: Sequence[int], limits: FileSizes) -> Compaction:
    """What compacting files of these sizes would do: the most small files that are worth it, smallest first."""
    small = sorted(size for size in sizes if size < limits.minimum_bytes)
    sums = list(accumulate(small))
    worth_it = [
        place
        for place, size in enumerate(small)
        if place + 1 >= SMALL_FILES and sums[place] >= GROWTH * size and small[place + 1 : place + 2] != [size]
    ]
    if not worth_it:
        return Compaction(len(sizes), len(small), 0, 0, 0)
    last = worth_it[-1]
    return Compaction(len(sizes), len(small), last + 1, sums[last], small[last] + 1)
