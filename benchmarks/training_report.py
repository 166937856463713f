"""The trainings' figures as tables: time to the end and accuracy, one process against two, a rank's memory."""

from statistics import median
from typing import Any

from benchmarks.contest import RECIPE
from benchmarks.markdown import markdown, to_cell
from benchmarks.results import MEBIBYTE, Spread, good, peak_megabytes, start_seconds, work_seconds
from benchmarks.training import AGAIN, FIRST

FRAMEWORKS = {"tensorflow": "TensorFlow", "torch": "PyTorch"}


def training_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The recipe's time over ours, by framework."""
    rows = []
    for framework, runs in found["runs"].items():
        seconds = {name: work_seconds(of).median for name, of in runs.items() if good(of)}
        for name, said, aim in ((FIRST, "the first time", "4"), (AGAIN, "where embeddings exist", "25")):
            if name in seconds and RECIPE in seconds:
                compared = (
                    f"training, {FRAMEWORKS[framework]}: the recipe's time from caches to its end, times ours {said}"
                )
                rows.append((compared, f"{seconds[RECIPE] / seconds[name]:.1f}", aim))
    return rows


def accuracies(runs: list[dict]) -> Spread:
    """The best validation accuracy of each run."""
    return Spread.of([max(epoch["validation_accuracy"] for epoch in run["answer"]["epochs"]) for run in good(runs)])


def training_section(found: dict[str, Any]) -> str:
    """All that the page says of trainings."""
    title = "## Training: from caches to the accuracy of the default"
    return f"{title}\n\n{found['count']:,} photographs, split like any others.\n\n{training_table(found)}"


def training_table(found: dict[str, Any]) -> str:
    """Every training: seconds from caches to its end, accuracy, its epochs, what it costs."""
    head = ["", "caches to the end, s", "validation accuracy", "epochs", "first epoch, s", "an epoch more, s"]
    head += ["start, stop, logging, s", "CPU s", "peak MB"]
    rows = []
    for framework, by_name in found["runs"].items():
        for name, runs in by_name.items():
            said = f"{name}, {FRAMEWORKS[framework]}"
            if not good(runs):
                rows.append([said, to_cell(runs[0]["error"]), *[""] * 7])
                continue
            ends = [[epoch["seconds"] for epoch in run["answer"]["epochs"]] for run in good(runs)]
            more = median((of[-1] - of[0]) / max(1, len(of) - 1) for of in ends)
            rows.append(
                [
                    said,
                    f"{work_seconds(runs):.1f}",
                    f"{accuracies(runs):.3f}",
                    f"{len(ends[0])}",
                    f"{median(of[0] for of in ends):.1f}",
                    f"{more:.2f}",
                    f"{start_seconds(runs):.1f}",
                    f"{median(run['cpu_seconds'] for run in good(runs)):.0f}",
                    f"{peak_megabytes(runs):,.0f}",
                ]
            )
    return markdown(head, rows)


def accuracy_section(found: dict[str, Any]) -> str:
    """Every kind of training: accuracy, seconds, and how soon a training begins where caches and embeddings exist."""
    head = ["trained", "in", "test accuracy", "validation accuracy", "an epoch of fine-tuning, s", "training in all, s"]
    head += ["start of the process to the end of the first epoch, nothing new, s"]
    rows = []
    for framework, by_kind in found["runs"].items():
        for kind, runs in by_kind.items():
            if not good(runs):
                rows.append([kind, FRAMEWORKS[framework], to_cell(runs[0]["error"]), *[""] * 4])
                continue
            said = [run["answer"] for run in good(runs)]
            soon = [one["epoch_ends"][0] for one in said if not (one["caches_written"] or one["embedded_images"])]
            tuning = [seconds for one in said for seconds in one["fine_tuning_seconds"]]
            spreads = [Spread.of([one[name] for one in said]) for name in ("test_accuracy", "validation_accuracy")]
            rows.append(
                [
                    kind,
                    FRAMEWORKS[framework],
                    *(f"{spread:.3f}" for spread in spreads),
                    f"{median(tuning):.1f}" if tuning else "",
                    f"{Spread.of([one['seconds'] for one in said]):.0f}",
                    f"{Spread.of(soon):.1f}" if soon else "",
                ]
            )
    title = "## Accuracy: every kind of training, default settings"
    return f"{title}\n\n{found['count']:,} photographs, split like any others.\n\n{markdown(head, rows)}"


def told(found: dict[str, Any], processes: str, size: int, name: str) -> float | None:
    """The median of a figure that runs by so many processes told; None where none got to the end."""
    runs = good(found["runs"][processes].get(str(size), []))
    return median(run["answer"][name] for run in runs) if runs else None


def processes_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Two processes against one on the same cores; what a rank holds of tables of ten times the size."""
    small, large = found["count"] // 10, found["count"]
    one, two = (told(found, number, large, "embedded_images_per_second") for number in ("1", "2"))
    before, after = (told(found, "2", size, "rank_bytes") for size in (small, large))
    speed = "processes: images a second of two Horovod processes, times those of one on the same cores"
    memory = f"processes: a rank's anonymous memory on {large:,} images, times that on {small:,}"
    rows = []
    if one and two:
        rows.append((speed, f"{two / one:.2f}", ""))
    if before and after:
        rows.append((memory, f"{after / before:.2f}", ""))
    return rows


def processes_section(found: dict[str, Any]) -> str:
    """Images a second and a rank's anonymous memory, by processes and by the size of the tables."""
    rows = []
    for processes, by_size in found["runs"].items():
        for size, runs in by_size.items():
            if not good(runs):
                rows.append([processes, f"{int(size):,}", to_cell(runs[0]["error"]), "", ""])
                continue
            names = ("embedded_images_per_second", "rank_bytes", "work_seconds")
            rate, held, seconds = (median(run["answer"][name] for run in good(runs)) for name in names)
            cells = [f"{rate:,.0f}", f"{held / MEBIBYTE:,.0f}", f"{seconds:.1f}"]
            rows.append([processes, f"{int(size):,}", *cells])
    head = ["processes", "images", "embedded, images a second", "a rank's anonymous memory, MB at most", "the step, s"]
    return f"## Processes: one or two on the same cores\n\n{markdown(head, rows)}"
