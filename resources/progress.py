"""Progress of long work: one live line on a terminal, or a plain line every few seconds in a log.

This file imports no Dagster, because ranks import it.
"""

import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from tqdm import tqdm

LIVE_SECONDS = 0.5  # between two updates of the live line
LINE_SECONDS = 10.0  # between two plain lines, because a log keeps them


def is_terminal() -> bool:
    """Whether output goes to a terminal that can redraw a line."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return False
    return os.get_terminal_size(sys.stdout.fileno()).columns > 0


def to_line(doing: str, done: int, total: int | None, unit: str, rate: float | None) -> str:
    """The count, the rate and the remaining time, as far as they are known."""
    parts = [f"{doing} {done:,} of {total:,} {unit}" if total and done <= total else f"{doing} {done:,} {unit}"]
    if rate:
        parts.append(f"{rate:,.0f} a second" if rate >= 10 else f"{rate:,.2g} a second")
        if total and done < total:
            parts.append(f"{timedelta(seconds=round((total - done) / rate))} left")
    return ", ".join(parts)


class ProgressLine(tqdm):
    """A progress line; work that ends before the first line is due shows none.

    tqdm does the arithmetic and draws the live line; `log`, such as a logger's `info`, gets the plain lines.
    """

    monitor_interval = 0  # no monitor thread, because every line here is updated often enough

    # Any: tqdm has no types.
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

    @property
    def done(self) -> int:
        """What this line has counted, without what was done before it."""
        return int(self.n - self.initial)

    def reach(self, done: int) -> None:
        """Count up to a number, without what was done before the line; a lower number than last time is ignored."""
        self.update(max(0, done - self.done))

    # tqdm's annotations lack the result of `display`, which its `close` uses.
    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Show or log the line; an empty message removes the live line."""
        if self._log is None:
            if msg is None and self.format_dict["elapsed"] < self.delay:
                return False  # `write` redraws a line that was not shown yet
            self._shown = True
            return bool(super().display(msg, pos))
        if msg is None and self.n:
            self._log(str(self))
        return False

    def close(self) -> None:
        """Remove the live line, which tqdm does only if the last update was late enough."""
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
