"""The whole path on the landing folder, or on generated sample images, and a table of what came out."""

import sys
import time
from collections.abc import Mapping
from urllib.parse import unquote

import dagster as dg

from resources.settings import Settings
from scripts.home import prepared_home, quiet, write_samples_if_new
from scripts.runs import (
    ON_TERMINAL,
    end_lost_runs,
    metadata_of,
    process_tags,
    seconds_by_step,
    tell_failures,
    terminal,
)
from scripts.terminal import emphasized, table


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
