"""The whole graph, on the landing folder or on generated sample images, with a summary of the results.

The gallery runs from the first images to the end. If Horovod is still being installed, training waits for it.
"""

import importlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, groupby, islice, zip_longest
from typing import Any
from urllib.parse import unquote, urlsplit

import dagster as dg

from resources.locks import locked
from resources.mlflow.model_registry import ModelVersion, serving_version, shadows
from resources.progress import ProgressLine
from resources.settings import Settings
from scripts import install
from scripts.cluster import free_port
from scripts.dev import GALLERY, HOST, STOP_SECONDS, is_up
from scripts.home import hide_library_messages, open_home
from scripts.runs import metadata_of, print_failures, run_job, seconds_by_step
from scripts.sample_images import write_sample_images
from scripts.terminal import PROGRAM, styled, table

DEMO_LOCK = "demo.lock"  # in a home
EXAMPLES = 5

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
    from image_assets.models.training import weights_identity
    from resources.training import BackboneWeights

    # Before anything runs: files to work on, and the backbone's weights.
    resources["image_folder"].require_files()
    for framework in CURRENT_BACKBONE.implementations:
        weights_identity(CURRENT_BACKBONE, framework, BackboneWeights(source=settings.backbone))
    print(f"Landing folder {settings.landing}, home {settings.home}\n", flush=True)
    with GalleryServer(settings) as gallery:
        results = run_path(gallery.start_with_images)
        if not results[-1].success:
            print_failures(results[-1])
            return 1
        print("\n" + summary(results, resources, settings))
        if checks := list(chain.from_iterable(map(failed_checks, results))):
            print("\n" + table("Failed asset checks", checks))
        print("\n" + table("Some predictions", example_predictions(resources)))
        if compared := comparison(metadata_of(results[-1]), resources["model_registry"].versions()):
            print(f"\n{compared}")
    print(styled(f"\nDone in {time.monotonic() - start:.0f} s.", "good"))
    print(f"To browse all photos and predictions, run `{PROGRAM} dev` and open {settings.gallery_url}")
    return 0


def run_path(on_materialization: Callable[[dg.AssetMaterialization], object]) -> list[dg.ExecuteInProcessResult]:
    """Runs the whole path; in two runs if what training needs is still being installed.

    Raises:
        SystemExit: What training needs could not be installed.
    """
    if not install.PENDING.exists():
        return [run_job("whole_path", on_materialization=on_materialization)]
    before, after = two_parts()
    first = run_job("whole_path", before, on_materialization)
    if not first.success:
        return [first]
    print("\nTables and caches are complete. Training needs Horovod:", flush=True)
    if subprocess.run([sys.executable, "-m", "scripts.install", "--rest"], cwd=install.ROOT, check=False).returncode:
        sys.exit(
            f"Nothing was trained. Fix the error above and run `{PROGRAM} demo` again: it continues with training."
        )
    importlib.invalidate_caches()  # this process has listed the folder of the packages before
    return [first, run_job("whole_path", after)]


def two_parts() -> tuple[set[dg.AssetKey], set[dg.AssetKey]]:
    """The assets of the whole path that need no framework, and the others."""
    from definitions import defs
    from image_assets.jobs.asset_jobs import BEFORE_MODELS, WHOLE_PATH

    graph = defs.resolve_asset_graph()
    before, whole = (set(selection.resolve(graph)) for selection in (BEFORE_MODELS, WHOLE_PATH))
    return before, whole - before


class GalleryServer:
    """The gallery's server, from the first new images to the end of the demo."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "GalleryServer":
        self._messages = tempfile.TemporaryFile()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:  # a browser holds on to an answer
                self._process.kill()
                self._process.wait()
        self._messages.close()

    @property
    def is_running(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start_with_images(self, materialization: dg.AssetMaterialization) -> None:
        """Starts the server when there are new images to look at, and prints its address once it responds."""
        added = materialization.metadata.get("rows_added")
        is_new = materialization.asset_key == dg.AssetKey("featured_images") and added is not None and added.value
        if not is_new or self._process is not None:
            return
        port = available_port(urlsplit(self._settings.gallery_url).port or 0)
        home, landing = str(self._settings.home), str(self._settings.landing)
        environment = {**os.environ, "IMAGE_ASSETS_HOME": home, "IMAGE_ASSETS_LANDING": landing}
        command = [*GALLERY, "--port", str(port), "--parent", str(os.getpid())]
        self._process = subprocess.Popen(command, env=environment, stdout=self._messages, stderr=self._messages)
        threading.Thread(target=self._announce, args=(self._process, f"http://{HOST}:{port}"), daemon=True).start()

    def _announce(self, process: subprocess.Popen[bytes], url: str) -> None:
        while process.poll() is None:
            if is_up(f"{url}/health"):
                line = f"Browse your images while the demo runs: {url} (afterwards, use `{PROGRAM} dev`)"
                ProgressLine.write(styled(line, "strong"), file=sys.stdout)
                sys.stdout.flush()
                return
            time.sleep(0.5)
        if process.returncode > 0:  # it was not stopped by a signal
            self._messages.seek(0)
            reason = self._messages.read().decode(errors="replace").strip().rpartition("\n")[2]
            ProgressLine.write(styled(f"The gallery did not start: {reason}", "warning"), file=sys.stdout)


def available_port(preferred: int) -> int:
    """The preferred port if nothing uses it, else another one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, preferred))
        except OSError:
            return free_port()
        return probe.getsockname()[1]


def wait_for_turn(settings: Settings) -> None:
    """Waits until no other demo runs on the home, and keeps others waiting until this process ends.

    Pools would keep two demos from writing one table at once, but both would train, in twice the memory.
    """
    file = settings.home / DEMO_LOCK
    if not _turn.enter_context(locked(file, wait=False)):
        _turn.close()
        print(f"Another `{PROGRAM} demo` is using {settings.home}; waiting for it to finish", flush=True)
        _turn.enter_context(locked(file))


def write_samples_if_new(settings: Settings) -> None:
    """Generates sample images if no landing folder was ever named."""
    landing = settings.home / "landing"
    if settings.landing == landing and not landing.exists():
        print(f"Writing sample images to {landing}", flush=True)
        write_sample_images(landing)


def summary(results: Sequence[dg.ExecuteInProcessResult], resources: Mapping[str, object], settings: Settings) -> str:
    """Quarantined and skipped files, test accuracies, rows and seconds per asset, and where everything is stored."""
    metadata = dict(chain.from_iterable(metadata_of(result).items() for result in results))
    seconds = dict(chain.from_iterable(seconds_by_step(result).items() for result in results))
    return "\n\n".join(
        [
            table("Quarantined files", quarantined_files(resources) or [("none",)]),
            table("Skipped", skipped_rows(metadata)),
            table("Folders", [(str(metadata.get("image_files", {}).get("folder_layout", "")),)]),
            table("Test accuracy", accuracy_rows(metadata)),
            table("Tables, caches and models", asset_rows(metadata, seconds)),
            table("Where to find everything", locations(settings)),
        ]
    )


def accuracy_rows(metadata: Mapping[str, Mapping[str, object]]) -> list[tuple[str, ...]]:
    """The version that each framework trained, with its accuracy on the test split, and the one in production."""
    from image_assets.models.frameworks import FRAMEWORKS

    evaluations = metadata.get("model_evaluations", {})
    trained = {
        str(metadata[framework.asset]["model_version"]): framework.title
        for framework in FRAMEWORKS.values()
        if framework.asset in metadata
    }
    serving = str(evaluations.get("serving_version", "none"))
    production = "none yet: promote one with promote_model" if serving == "none" else f"version {serving}"
    return [
        *((f"version {number}", title, test_accuracy(evaluations, number)) for number, title in trained.items()),
        ("production", production, ""),
    ]


def locations(settings: Settings) -> list[tuple[str, str]]:
    """Where tables, models and caches are stored, and the web pages."""
    has_server = settings.tracking_uri.startswith(("http:", "https:"))  # which also stores the files of models
    pages = f"{settings.dagster_url} (Dagster), {settings.gallery_url} (gallery), {settings.mlflow_url} (MLflow)"
    return [
        ("tables", f"{settings.storage}/tables/<asset>   (Delta)"),
        ("models", settings.tracking_uri if has_server else f"{settings.tracking_uri}, {settings.storage}/mlartifacts"),
        ("caches", str(settings.caches)),
        ("UI", f"{PROGRAM} dev, then {pages}"),
    ]


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


def test_accuracy(evaluations: Mapping[str, object], version: object) -> str:
    """A version's accuracy on the test split, as text."""
    accuracy = evaluations.get(f"test_accuracy_v{version}")
    return f"{accuracy:.3f}" if isinstance(accuracy, float) else "no images in the test split"


def comparison(metadata: Mapping[str, Mapping[str, object]], versions: Sequence[ModelVersion]) -> str:
    """Which version serves and which ones run beside it, how accurate they are and how often they agree; may be empty.

    Args:
        metadata: That of the assets by name, with `model_evaluations` and `version_agreements`.
        versions: All registered versions.
    """
    from image_assets.models.frameworks import FRAMEWORKS

    evaluations, agreements = (metadata.get(name, {}) for name in ("model_evaluations", "version_agreements"))

    def named(version: ModelVersion) -> str:
        framework = FRAMEWORKS.get(version.tags.get("framework", ""))
        accuracy = evaluations.get(f"test_accuracy_v{version.version}")
        figure = f", test accuracy {accuracy:.2f}" if isinstance(accuracy, float) else ""
        return f"{framework.title if framework else 'A model'} (version {version.version}{figure})"

    serving = serving_version(versions)
    if serving is None:
        return ""
    sentences = [f"{named(serving)} serves."]
    for shadow in shadows(versions):
        share = agreements.get(f"agreement_v{shadow.version}")
        agree = f"; they agree on {share:.0%} of the images" if isinstance(share, float) else ""
        sentences.append(f"{named(shadow)} runs beside it as a shadow{agree}.")
    return " ".join(sentences)


def quarantined_files(resources: Mapping[str, object]) -> list[tuple[str, ...]]:
    """Path, reason and message of every quarantined file."""
    import pyarrow.compute as pc

    from image_assets.schemas import IMAGE_FILES

    with dg.build_resources(resources) as opened:
        columns, where = ["path", "reason", "message"], pc.field("state") == "quarantined"
        files = opened.delta_tables.read(IMAGE_FILES, columns, where).sort_by("path").to_pylist()
        return [(unquote(row["path"]), row["reason"], row["message"]) for row in files]


def example_predictions(resources: Mapping[str, object]) -> list[tuple[str, ...]]:
    """A few photos of different predicted labels, each with its own label and the prediction, under a header."""
    import pyarrow.compute as pc

    from image_assets.schemas import CURRENT_PREDICTIONS, FEATURED_IMAGES

    with dg.build_resources(resources) as opened:
        columns, where = ["path", "image_id", "label", "probability"], pc.field("label").is_valid()
        predictions = chosen(opened.delta_tables.read(CURRENT_PREDICTIONS, columns, where).to_pylist())
        where = pc.field("path").isin([row["path"] for row in predictions])
        images = opened.delta_tables.read(FEATURED_IMAGES, ["path", "label"], where).to_pylist()
    labels = {image["path"]: image["label"] or "none" for image in images}
    rows = [
        (
            unquote("/".join(row["path"].split("/")[-2:])),
            labels.get(row["path"], ""),
            row["label"],
            f"{row['probability']:.3f}",
        )
        for row in predictions
    ]
    return [("photo", "label", "predicted", "probability"), *rows]


def chosen(predictions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few predictions: one of each predicted label, then a second one of each."""
    # In the order of their hashes: photos whose paths are similar often show the same.
    in_order = sorted(predictions, key=lambda row: (row["label"], row["image_id"], row["path"]))
    by_label = groupby(in_order, key=lambda row: row["label"])
    turns = zip_longest(*(list(rows) for _, rows in by_label))
    return list(islice((row for turn in turns for row in turn if row is not None), EXAMPLES))


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
