"""The whole graph, on the landing folder or on generated sample images, with a summary of the results."""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from urllib.parse import unquote

import dagster as dg

from resources.locks import locked
from resources.settings import Settings
from scripts.home import hide_library_messages, open_home
from scripts.runs import metadata_of, print_failures, run_job, seconds_by_step
from scripts.sample_images import write_sample_images
from scripts.terminal import PROGRAM, styled, table

DEMO_LOCK = "demo.lock"  # in a home

_turn = ExitStack()  # closed when the process ends


def main(landing: str | None = None) -> int:
    """Runs the whole graph and prints what came out.

    Args:
        landing: A folder or `s3://` URL with one sub-folder of images per label. By default the one that
            IMAGE_ASSETS_LANDING or the home names, and generated images for a new home.

    Returns:
        The exit code: 1 if a step failed.
    """
    start = time.monotonic()
    if landing:
        os.environ["IMAGE_ASSETS_LANDING"] = landing
    settings = open_home()
    wait_for_turn(settings)
    write_samples_if_new(settings)
    hide_library_messages()
    from definitions import resources
    from image_assets.models.backbones import CURRENT_BACKBONE

    # Before anything runs: files to work on, and the backbone's weights.
    resources["image_folder"].require_files()
    for implementation in CURRENT_BACKBONE.implementations.values():
        resources["backbone"].identity(implementation.weight_file)
    print(f"Landing folder {settings.landing}, home {settings.home}\n", flush=True)
    result = run_job("whole_path")
    if not result.success:
        print_failures(result)
        return 1
    print("\n" + summary(result, resources, settings))
    if checks := failed_checks(result):
        print("\n" + table("Failed asset checks", checks))
    print(styled(f"\nDone in {time.monotonic() - start:.0f} s.", "good"))
    return 0


def wait_for_turn(settings: Settings) -> None:
    """Waits until no other demo runs on the home, and keeps others waiting until this process ends.

    Pools would keep two demos from writing one table at once, but both would train, in twice the memory.
    """
    file = settings.home / DEMO_LOCK
    if not _turn.enter_context(locked(file, wait=False)):
        _turn.close()
        print(f"Another `{PROGRAM} demo` runs on the home {settings.home}; this one starts when it ends.", flush=True)
        _turn.enter_context(locked(file))


def write_samples_if_new(settings: Settings) -> None:
    """Generates sample images if no landing folder was ever named."""
    landing = settings.home / "landing"
    if settings.landing == landing and not landing.exists():
        print(f"Writing sample images to {landing}", flush=True)
        write_sample_images(landing)


def summary(result: dg.ExecuteInProcessResult, resources: Mapping[str, object], settings: Settings) -> str:
    """Quarantined and skipped files, test accuracies, rows and seconds per asset, and where everything is stored."""
    metadata = metadata_of(result)
    evaluations = metadata.get("model_evaluations", {})
    models = {name.removesuffix("_model"): model for name, model in metadata.items() if name.endswith("_model")}
    accuracies = [
        (f"version {model['model_version']}", framework, test_accuracy(evaluations, model["model_version"]))
        for framework, model in models.items()
    ]
    places = [
        ("tables", f"{settings.storage}/tables/<asset>   (Delta)"),
        ("models", f"{settings.home}/mlflow.db, {settings.storage}/mlartifacts"),
        ("caches", str(settings.caches)),
        ("UI", f"{PROGRAM} dev, then http://127.0.0.1:3000 (Dagster), :4000 (gallery) and :5000 (MLflow)"),
    ]
    return "\n\n".join(
        [
            table("Quarantined files", quarantined_files(resources) or [("none",)]),
            table("Skipped", skipped_rows(metadata)),
            table("Folders", [(str(metadata.get("image_files", {}).get("folder_layout", "")),)]),
            table("Test accuracy", [*accuracies, ("production", f"version {evaluations.get('serving_version')}", "")]),
            table("Tables, caches and models", asset_rows(metadata, seconds_by_step(result))),
            table("Where to find everything", places),
        ]
    )


def asset_rows(metadata: dict[str, dict[str, object]], seconds: dict[str, float]) -> list[tuple[str, ...]]:
    """One row per asset: total rows, new rows, seconds and a remark, under a header."""
    rows = [("asset", "rows", "new", "seconds", "")]
    for name, values in metadata.items():
        count, new = values.get("dagster/row_count", ""), values.get("rows_added", "")
        rows.append(
            (
                name,
                f"{count:,}" if count != "" else "",
                f"+{new:,}" if new != "" else "",
                f"{seconds[name]:.0f}" if name in seconds else "",  # image_files is made in the step raw_images
                remark(values),
            )
        )
    return rows


def remark(metadata: dict[str, object]) -> str:
    """Whether a cache or model was reused, and a warning about an untrained backbone."""
    if metadata.get("written") is False or metadata.get("trained") is False:
        return "reused: nothing changed"
    return "untrained backbone: expect poor accuracy" if metadata.get("backbone") == "untrained" else ""


def test_accuracy(evaluations: dict[str, object], version: object) -> str:
    """A version's accuracy on the test split, as text."""
    accuracy = evaluations.get(f"test_accuracy_v{version}")
    return f"{accuracy:.3f}" if isinstance(accuracy, float) else "no images in the test split"


def quarantined_files(resources: Mapping[str, object]) -> list[tuple[str, ...]]:
    """Path, reason and message of every quarantined file."""
    import pyarrow.compute as pc

    from image_assets.schemas import IMAGE_FILES

    with dg.build_resources(resources) as opened:
        columns, where = ["path", "reason", "message"], pc.field("state") == "quarantined"
        files = opened.delta_tables.read(IMAGE_FILES, columns, where).sort_by("path").to_pylist()
        return [(unquote(row["path"]), row["reason"], row["message"]) for row in files]


def skipped_rows(metadata: Mapping[str, Mapping[str, object]]) -> list[tuple[str, ...]]:
    """What the listing of the landing folder left out: suffix, pattern or folder, what it is, and how often."""
    skipped = metadata.get("image_files", {}).get("skipped")
    if not isinstance(skipped, dg.TableMetadataValue):
        return [("none",)]
    return [tuple(str(record.data[name]) for name in ("name", "skipped", "count")) for record in skipped.records]


def failed_checks(result: dg.ExecuteInProcessResult) -> list[tuple[str, ...]]:
    """Severity, asset, name and description of each asset check that failed."""
    return [
        (check.severity.value, check.asset_key.to_user_string(), check.check_name, check.description or "")
        for check in result.get_asset_check_evaluations()
        if not check.passed
    ]
