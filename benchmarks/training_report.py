"""Training results as tables: time and accuracy, one process compared with two, a rank's memory."""

from statistics import median
from typing import Any

from benchmarks.contest import RECIPE
from benchmarks.markdown import markdown, to_cell
from benchmarks.results import MEBIBYTE, Spread, good, peak_megabytes, start_seconds, total_seconds, work_seconds
from benchmarks.training import AGAIN, FIRST
from image_assets.models.frameworks import FRAMEWORKS


def training_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The recipe's time relative to ours, by framework."""
    rows = []
    for framework, runs in found["runs"].items():
        seconds = {name: work_seconds(of).median for name, of in runs.items() if good(of)}
        for name, case, aim in ((FIRST, "first training", "4"), (AGAIN, "embeddings exist", "25")):
            if name in seconds and RECIPE in seconds:
                compared = (
                    f"training, {FRAMEWORKS[framework].title}: the recipe's time from caches, relative to ours ({case})"
                )
                rows.append((compared, f"{seconds[RECIPE] / seconds[name]:.1f}", aim))
    return rows


def accuracies(runs: list[dict]) -> Spread:
    """The best validation accuracy of each run."""
    return Spread.of([max(epoch["validation_accuracy"] for epoch in run["answer"]["epochs"]) for run in good(runs)])


def training_section(found: dict[str, Any]) -> str:
    """The page's section on training."""
    title = "## Training: from caches to a trained model"
    return f"{title}\n\n{found['count']:,} photographs, split as usual.\n\n{training_table(found)}"


def training_table(found: dict[str, Any]) -> str:
    """One row per training: seconds from caches to the end, accuracy, epochs, costs."""
    head = [
        "",
        "from caches to the end, s",
        "validation accuracy",
        "epochs",
        "first epoch, s",
        "further epochs, s each",
    ]
    head += ["start, stop, logging, s", "total, s", "CPU s", "peak MB"]
    rows = []
    for framework, by_name in found["runs"].items():
        for name, runs in by_name.items():
            title = f"{name}, {FRAMEWORKS[framework].title}"
            if not good(runs):
                rows.append([title, to_cell(runs[0]["error"]), *[""] * 8])
                continue
            ends = [[epoch["seconds"] for epoch in run["answer"]["epochs"]] for run in good(runs)]
            more = median((of[-1] - of[0]) / max(1, len(of) - 1) for of in ends)
            rows.append(
                [
                    title,
                    f"{work_seconds(runs):.1f}",
                    f"{accuracies(runs):.3f}",
                    f"{len(ends[0])}",
                    f"{median(of[0] for of in ends):.1f}",
                    f"{more:.2f}",
                    f"{start_seconds(runs):.1f}",
                    f"{total_seconds(runs):.1f}",
                    f"{median(run['cpu_seconds'] for run in good(runs)):.0f}",
                    f"{peak_megabytes(runs):,.0f}",
                ]
            )
    return markdown(head, rows)


def accuracy_section(found: dict[str, Any]) -> str:
    """The page's section on accuracy, with training times and the time to the first epoch if nothing is new."""
    head = ["trained", "framework", "test accuracy", "validation accuracy", "fine-tuning epoch, s", "training, total s"]
    head += ["process start to the end of the first epoch if nothing is new, s"]
    rows = []
    for framework, by_kind in found["runs"].items():
        for kind, runs in by_kind.items():
            if not good(runs):
                rows.append([kind, FRAMEWORKS[framework].title, to_cell(runs[0]["error"]), *[""] * 4])
                continue
            answers = [run["answer"] for run in good(runs)]
            soon = [one["epoch_ends"][0] for one in answers if not (one["caches_written"] or one["embedded_images"])]
            tuning = [seconds for one in answers for seconds in one["fine_tuning_seconds"]]
            spreads = [Spread.of([one[name] for one in answers]) for name in ("test_accuracy", "validation_accuracy")]
            rows.append(
                [
                    kind,
                    FRAMEWORKS[framework].title,
                    *(f"{spread:.3f}" for spread in spreads),
                    f"{median(tuning):.1f}" if tuning else "",
                    f"{Spread.of([one['seconds'] for one in answers]):.0f}",
                    f"{Spread.of(soon):.1f}" if soon else "",
                ]
            )
    title = "## Accuracy: every effort of training"
    return f"{title}\n\n{found['count']:,} photographs, split as usual.\n\n{markdown(head, rows)}"


def median_figure(found: dict[str, Any], processes: str, size: int, name: str) -> float | None:
    """The median of a figure over all runs with this number of processes; None if none finished."""
    runs = good(found["runs"][processes].get(str(size), []))
    return median(run["answer"][name] for run in runs) if runs else None


def processes_ratios(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Two processes relative to one on the same cores, and a rank's memory on ten times as many images."""
    small, large = found["count"] // 10, found["count"]
    one, two = (median_figure(found, number, large, "embedded_images_per_second") for number in ("1", "2"))
    before, after = (median_figure(found, "2", size, "rank_bytes") for size in (small, large))
    speed = "processes: images/s with two Horovod processes, relative to one on the same cores"
    memory = f"processes: a rank's anonymous memory with {large:,} images, relative to {small:,}"
    rows = []
    if one and two:
        rows.append((speed, f"{two / one:.2f}", ""))
    if before and after:
        rows.append((memory, f"{after / before:.2f}", ""))
    return rows


def processes_section(found: dict[str, Any]) -> str:
    """The page's section on processes: embedding rate and a rank's memory, by number of processes and images."""
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
    head = ["processes", "images", "embeddings/s", "a rank's peak anonymous memory, MB", "whole step, s"]
    return f"## Processes: one or two on the same cores\n\n{markdown(head, rows)}"
