"""The whole path on the landing folder, or on generated sample images, and a table of what came out."""

import logging
import re
import sys
import time
from collections.abc import Mapping
from urllib.parse import unquote

import dagster as dg
from dagster._utils.error import SerializableErrorInfo

from resources.environments import Settings
from resources.progress_line import ProgressLine, is_terminal
from scripts.emphasis import emphasized
from scripts.endings import remedy
from scripts.home import prepared_home, quiet, write_samples_if_new
from scripts.lost_runs import end_lost_runs, process_tags

MOST_LINES = 12  # of what a failure says: the run in Dagster has all of it
ON_TERMINAL = {"loggers": {"console": {}}}


@dg.logger(config_schema={})
def terminal(context: dg.InitLoggerContext) -> logging.Logger:
    """Dagster's console logger in short: when, which step, what."""
    from definitions import defs

    assets = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}

    def is_start(event: dg.DagsterEvent | None) -> bool:
        # Of assets only: checks are too many and too short to announce.
        return event is not None and event.event_type_value == "STEP_START" and event.step_key in assets

    class Short(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            meta = getattr(record, "dagster_meta", {})
            event = meta.get("dagster_event")
            step, text = meta.get("step_key") or "", (meta.get("orig_message") or record.getMessage()).splitlines()[0]
            if is_start(event):
                step, text = emphasized(f"{step:<20}", "strong"), "…"
            elif record.levelno >= logging.WARNING:
                text = emphasized(text, "bad" if record.levelno >= logging.ERROR else "warning")
            return f"{time.strftime('%H:%M:%S')}  {step:<20} {text}"

    def worth_showing(record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", {})
        # Of checks nothing but warnings: that one is skipped, since there was nothing to check, is no news.
        said = record.levelno >= logging.WARNING or (record.levelno >= logging.INFO and meta.get("step_key") in assets)
        return bool(said) or is_start(meta.get("dagster_event"))

    class Above(logging.StreamHandler):
        """Lines above the live line of a terminal, which goes on below them."""

        def emit(self, record: logging.LogRecord) -> None:
            if is_terminal():
                ProgressLine.write(self.format(record), file=sys.stdout)
            else:
                super().emit(record)

    logger = logging.Logger("image_assets.terminal", level=logging.DEBUG)
    handler = Above(sys.stdout)
    handler.setFormatter(Short())
    handler.addFilter(worth_showing)
    logger.addHandler(handler)
    return logger


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """What went wrong, by step, in the words of the first cause; before any step, what a resource said."""
    steps = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    resources = [event for event in result.all_events if event.event_type_value == "RESOURCE_INIT_FAILURE"]
    return [
        *(f"{event.step_key}: {first_cause(event.step_failure_data.error)}" for event in steps),
        *(f"before any step: {first_cause(event.engine_event_data.error)}" for event in resources),
    ]


def first_cause(error: SerializableErrorInfo | None) -> str:
    """What the exception said that all others followed from."""
    while error is not None and error.cause is not None:
        error = error.cause
    lines = re.sub(r"\x1b\[\d*m", "", error.message if error else "failed").strip().splitlines()
    return "\n    ".join([*lines[:MOST_LINES], *(["…"] if len(lines) > MOST_LINES else [])])


def tell_failures(result: dg.ExecuteInProcessResult) -> None:
    """Say what went wrong in which step, and what to do about it."""
    told = failures(result)
    print(emphasized("\nNot completed:", "bad", sys.stderr), *told, sep="\n  ", file=sys.stderr)
    for do in dict.fromkeys(remedy(failure) or "" for failure in told):
        if do:
            print(f"What to do: {emphasized(do, 'strong', sys.stderr)}", file=sys.stderr)
    print("The same command again goes on from what was done.", file=sys.stderr)


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, object]]:
    """The metadata of each materialized asset, by name."""
    events = result.get_asset_materialization_events()
    materializations = [event.step_materialization_data.materialization for event in events]
    return {
        made.asset_key.to_user_string(): {name: value.value for name, value in made.metadata.items()}
        for made in materializations
    }


def seconds_by_step(result: dg.ExecuteInProcessResult) -> dict[str, float]:
    """How long each step took."""
    return {
        event.step_key or "": event.step_success_data.duration_ms / 1000
        for event in result.all_events
        if event.event_type_value == "STEP_SUCCESS"
    }


def table(title: str, rows: list[tuple[str, ...]]) -> str:
    """Columns of text under a title."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))] if rows else []
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([emphasized(title, "strong"), *(line.rstrip() for line in lines)])


def quarantined(resources: Mapping[str, object]) -> list[tuple[str, ...]]:
    """The quarantined files and why."""
    from image_assets.schemas import IMAGE_FILES

    with dg.build_resources(resources) as ready:
        files = ready.delta_tables.read(IMAGE_FILES).where("state = 'quarantined'").orderBy("path")
        return [(unquote(row["path"]), row["reason"], row["message"]) for row in files.collect()]


def summary(result: dg.ExecuteInProcessResult, resources: Mapping[str, object], settings: Settings) -> str:
    """What came out: rows, quarantine, accuracies, serving version, times, places."""
    made = metadata_of(result)
    seconds = seconds_by_step(result)
    step_of = {"image_files": "raw_images"}
    rows = [("asset", "rows", "new", "seconds", "")]
    for name, metadata in made.items():
        took = f"{seconds.get(step_of.get(name, name), 0):.0f}" if name != "image_files" else ""
        new = metadata.get("rows_added", "")
        count = metadata.get("dagster/row_count", "")
        rows.append(
            (name, f"{count:,}" if count != "" else "", f"+{new:,}" if new != "" else "", took, remark(metadata))
        )
    evaluations = made.get("model_evaluations", {})
    figures = [
        (made[f"{framework}_model"], framework) for framework in ("tensorflow", "torch") if f"{framework}_model" in made
    ]
    accuracies = [
        (f"version {model['model_version']}", framework, test_accuracy(evaluations, model["model_version"]))
        for model, framework in figures
    ]
    files = quarantined(resources) or [("none",)]
    places = [
        ("tables", f"{settings.storage}/tables/<asset>   (Delta)"),
        ("models", f"{settings.home}/mlflow.db, {settings.storage}/mlartifacts"),
        ("caches", str(settings.caches)),
        ("UI", "make dev   then open http://127.0.0.1:3000 (Dagster) and http://127.0.0.1:5000 (MLflow)"),
    ]
    return "\n\n".join(
        [
            table("Quarantined files", files),
            table("Test accuracy", [*accuracies, ("serving", f"version {evaluations.get('serving_version')}", "")]),
            table("Tables, caches and models", rows),
            table("Where things are", places),
        ]
    )


def remark(metadata: dict[str, object]) -> str:
    """Whether a cache or a model was found again, and what to know of a model."""
    if metadata.get("written") is False or metadata.get("trained") is False:
        return "found again: nothing changed"
    return "untrained backbone: expect poor accuracy" if metadata.get("backbone") == "untrained" else ""


def test_accuracy(evaluations: dict[str, object], version: object) -> str:
    """A version's accuracy on the test split, in words where there is none."""
    accuracy = evaluations.get(f"test_accuracy_v{version}")
    return f"{accuracy:.3f}" if isinstance(accuracy, float) else "no image in the test split"


def failed_checks(result: dg.ExecuteInProcessResult) -> list[tuple[str, ...]]:
    """The asset checks that did not pass."""
    return [
        (check.severity.value, check.asset_key.to_user_string(), check.check_name, check.description or "")
        for check in result.get_asset_check_evaluations()
        if not check.passed
    ]


def main() -> int:
    """Run the whole path; 1 when a step fails, with its message last."""
    started = time.monotonic()
    settings = prepared_home()
    write_samples_if_new(settings)
    quiet()
    from definitions import defs, resources
    from resources.backbone import WEIGHT_FILES

    resources["image_folder"].require_files()
    for framework in WEIGHT_FILES:
        resources["backbone"].identity(framework)
    print(f"Landing folder {settings.landing}, home {settings.home}\n", flush=True)
    job = dg.Definitions.merge(defs, dg.Definitions(loggers={"console": terminal})).resolve_job_def("whole_path")
    with dg.DagsterInstance.get() as instance:
        end_lost_runs(instance)
        result = job.execute_in_process(
            instance=instance, run_config=ON_TERMINAL, tags=process_tags(), raise_on_error=False
        )
        if not result.success:
            tell_failures(result)
            return 1
        print("\n" + summary(result, resources, settings))
        checks = failed_checks(result)
        if checks:
            print("\n" + table("Asset checks that did not pass", checks))
        print(emphasized(f"\nDone in {time.monotonic() - started:.0f} s.", "good"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
