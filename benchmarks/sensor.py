"""Measures ticks of the sensor new_images: their duration and the size of the cursor."""

import sys
import time
from dataclasses import asdict
from pathlib import Path

import dagster as dg

from benchmarks.following import NEW, sizes_up_to
from benchmarks.homes import home_of
from benchmarks.measurement import measured
from benchmarks.ours import use_home
from benchmarks.photographs import SMALL, number_of, remove_beyond, write
from benchmarks.task import read_task, timed

TICKS = 5


def sensor(count: int, repeats: int) -> dict:
    """Ticks at every size, without new files and with a hundred."""
    runs: dict[str, list[dict]] = {}
    for size in sizes_up_to(count):
        home, landing = home_of(SMALL, size)
        for repeat in range(repeats):
            remove_beyond(landing, size)
            run = measured([sys.executable, "-m", "benchmarks.sensor", "sensor", str(landing), str(home), ""])
            remove_beyond(landing, size)
            runs.setdefault(str(size), []).append(asdict(run))
            print(f"sensor {repeat + 1}/{repeats}  {size:,} files: {run.error or run.answer}", flush=True)
    return {"count": count, "new": NEW, "runs": runs}


class Daemon:
    """Ticks a sensor like Dagster's daemon: provides resources, evaluates it, stores its cursor."""

    def __init__(self, instance: dg.DagsterInstance, sensor: dg.SensorDefinition) -> None:
        self.instance = instance
        self.sensor = sensor
        self.cursor: str | None = None

    def tick(self) -> tuple[float, dg.SensorResult | dg.SkipReason]:
        """The milliseconds of one tick, and its result."""
        from definitions import resources

        needed = {name: resources[name] for name in self.sensor.required_resource_keys}
        started = time.perf_counter()
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, sensor_name=self.sensor.name, resources=needed
        ) as context:
            answer = self.sensor(context)
        milliseconds = 1000 * (time.perf_counter() - started)
        assert isinstance(answer, dg.SensorResult | dg.SkipReason)
        if isinstance(answer, dg.SensorResult):
            self.cursor = answer.cursor
        return milliseconds, answer


def requests(answer: dg.SensorResult | dg.SkipReason) -> int:
    """The number of runs that a tick requested."""
    return len(answer.run_requests or []) if isinstance(answer, dg.SensorResult) else 0


def main() -> None:
    """Tick without new files, add some, tick again."""
    task = read_task()
    home, landing = Path(task.target), Path(task.source)
    use_home(home, landing)
    from sensors.new_images import new_images_every

    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance, timed() as figures:
        daemon = Daemon(instance, new_images_every(10))
        quiet = [daemon.tick() for _ in range(1 + TICKS)]
        count = number_of(landing)
        write(SMALL, landing, range(count, count + NEW))
        new = [daemon.tick() for _ in range(TICKS)]
        figures |= {
            "first": quiet[0][0],
            "quiet": [milliseconds for milliseconds, _ in quiet[1:]],
            "new": [milliseconds for milliseconds, _ in new],
            "asked": [sum(requests(answer) for _, answer in ticks) for ticks in (quiet, new)],
            "cursor_bytes": len((daemon.cursor or "").encode()),
        }


if __name__ == "__main__":
    main()
