"""How far long work has come: one live line on a terminal, plain lines a few seconds apart elsewhere.

No Dagster here: ranks import this file.
"""

import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from tqdm import tqdm

LIVE_SECONDS = 0.5  # between two looks of the live line
LINE_SECONDS = 10.0  # between two plain lines: a run's log is kept


def is_terminal() -> bool:
    """Whether a person looks at what is printed, in a terminal that has a width and goes back to a line's start."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return False
    return os.get_terminal_size(sys.stdout.fileno()).columns > 0


def to_line(doing: str, done: int, total: int | None, unit: str, rate: float | None) -> str:
    """How far it has come, how fast it goes and how long it will take, as far as that is known."""
    parts = [f"{doing} {done:,} of {total:,} {unit}" if total and done <= total else f"{doing} {done:,} {unit}"]
    if rate:
        parts.append(f"{rate:,.0f} a second" if rate >= 10 else f"{rate:,.2g} a second")
        if total and done < total:
            parts.append(f"{timedelta(seconds=round((total - done) / rate))} left")
    return ", ".join(parts)


class ProgressLine(tqdm):
    """Counts what is done of a work. Work that is over sooner than a line is due says nothing.

    tqdm does the arithmetic and the live line. `tell` takes the plain lines, such as a log's `info`.
    """

    monitor_interval = 0  # no thread of tqdm's: nothing here is updated too seldom

    # Any: what tqdm takes and knows is its own.
    def __init__(
        self,
        doing: str,
        total: int | None,
        unit: str,
        log: Callable[[str], object],
        *,
        items: Iterable[Any] | None = None,
        before: int = 0,
    ) -> None:
        self._log = None if is_terminal() else log
        self._shown = False
        seconds = LINE_SECONDS if self._log else LIVE_SECONDS
        super().__init__(
            items,
            desc=doing,
            total=total,
            unit=unit,
            file=sys.stdout,
            initial=before,
            leave=False,
            dynamic_ncols=True,
            mininterval=seconds,
            maxinterval=10 * seconds,
            miniters=1,
            delay=LINE_SECONDS if self._log else 4 * LIVE_SECONDS,
        )

    def reach(self, done: int) -> None:
        """So much is done in all, beside what was before; less than last time changes nothing."""
        self.update(max(0, self.initial + done - self.n))

    # The annotations of tqdm forget what it answers, which its `close` asks for.
    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Show or tell the line; an empty one removes what is shown."""
        if self._log is None:
            if msg is None and self.format_dict["elapsed"] < self.delay:
                return False  # asked for by `write`, which shows again what it has cleared
            self._shown = True
            return bool(super().display(msg, pos))
        if msg is None and self.n:
            self._log(str(self))
        return False

    def close(self) -> None:
        """Remove what is shown; tqdm takes for shown what was counted late enough."""
        if self._shown and not self.disable:
            self.last_print_t = max(self.last_print_t, self.start_t + self.delay)
        super().close()

    def __str__(self) -> str:
        """The line, no wider than the terminal."""
        format_values = self.format_dict
        seconds = format_values["elapsed"]
        rate = format_values["rate"] or ((self.n - self.initial) / seconds if seconds else None)
        line = to_line(format_values["prefix"], self.n, self.total, self.unit, rate)
        return line if self._log else line[: (format_values["ncols"] or len(line) + 1) - 1]
