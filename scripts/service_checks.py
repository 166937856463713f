"""What `doctor` tests of engines and services: that they work together and that this account may use them."""

import contextlib
import os
import socket
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from scripts import jars
from scripts.machine_checks import Finding
from scripts.terminal import PROGRAM

TIMEOUT_SECONDS = 10  # for a service to respond
RANKS = 2


def training_step(framework: str) -> Finding:
    """A training step of two Horovod processes, on the device that training uses."""
    from image_assets.models.frameworks import FRAMEWORKS
    from resources.processes.local_ranks import local_ranks

    with local_ranks(RANKS, FRAMEWORKS[framework].rank_imports) as run:
        return to_finding(run(step_on_rank, framework))


def to_finding(steps: Sequence[tuple[str, str, str]]) -> Finding:
    """What the ranks' devices and weights, before and after the step, say about Horovod."""
    devices, before, after = zip(*steps, strict=True)
    title = f"Horovod {version('horovod')}: a training step of {len(steps)} processes on {', '.join(devices)}"
    if len(set(after)) > 1:
        return Finding("failed", f"{title} gave them different weights: their gradients were not averaged")
    if after == before:
        return Finding("failed", f"{title} changed no weights")
    return Finding("ok", title)


def step_on_rank(framework: str) -> tuple[str, str, str]:
    """Embeds random pixels, others on each rank, and trains on them: the device, weights before and after (on a rank).

    The weights are digests. Those before are rank 0's on every rank.
    """
    import numpy as np

    from image_assets.models.backbones import CURRENT_BACKBONE
    from image_assets.models.epochs import Batch, state_digest
    from image_assets.models.frameworks import FRAMEWORKS
    from image_assets.models.training_images import READ_BATCH_SIZE
    from image_assets.models.training_plan import Schedule, TrainingPlan

    schedule = Schedule(epochs=1, learning_rate=1e-3, warmup_epochs=0, patience=1, weight_decay=0.0, dropout=0.0)
    plan = TrainingPlan(
        labels=2,
        backbone="none",
        content="original",
        color="rgb",
        trainable="head",
        top_blocks=1,
        augmentation=False,
        head=schedule,
        fine_tuning=schedule,
        batch_size=READ_BATCH_SIZE,
        label_smoothing=0.0,
        class_weights=False,
        precision="auto",
        distributor="horovod",
        seed=0,
        backbone_name=CURRENT_BACKBONE.name,
    )
    training = FRAMEWORKS[framework].training
    collective = training.COLLECTIVES[plan.distributor]()
    network, _ = training.build_network(plan, collective)
    activations = network.freeze(None, schedule)
    before = state_digest(network.weights())
    numbers = np.random.default_rng(collective.rank)
    pixels = numbers.integers(0, 256, (READ_BATCH_SIZE, *CURRENT_BACKBONE.pixels_shape), np.uint8)
    labels = numbers.integers(0, plan.labels, READ_BATCH_SIZE)
    network.step(Batch(activations(pixels), labels), schedule.learning_rate, plan.seed)
    return str(network.device), before, state_digest(network.weights())


def spark() -> Finding:
    """A Delta table, written and read with the graph's own Spark session."""
    from resources.delta.spark_session import spark_session
    from resources.settings import read_settings

    settings = read_settings()
    with tempfile.TemporaryDirectory() as folder:
        session = spark_session(settings.spark_master, scratch=folder).spark_session
        session.range(10).write.format("delta").save(f"{folder}/numbers")
        rows = session.read.format("delta").load(f"{folder}/numbers").count()
        session.stop()
    state = "ok" if rows == 10 else "failed"
    return Finding(state, f"Spark {version('pyspark')} on {settings.spark_master}: 10 rows written, {rows} read")


def petastorm() -> Finding:
    """A Parquet file, read with Petastorm."""
    import pyarrow as pa
    from petastorm import make_batch_reader
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        parquet.write_table(pa.table({"label_index": [0, 1, 2]}), Path(folder) / "rows.parquet")
        with make_batch_reader(Path(folder).as_uri(), num_epochs=1, workers_count=1) as reader:
            rows = sorted(int(index) for batch in reader for index in batch.label_index)
    state = "ok" if rows == [0, 1, 2] else "failed"
    return Finding(state, f"Petastorm {version('petastorm')}: rows 0, 1, 2 written, {rows} read")


def landing() -> Finding:
    """The landing folder."""
    from resources.home import read_landing
    from resources.settings import image_folder, read_settings

    settings = read_settings()
    try:
        listing = image_folder(settings).list_names()
    except FileNotFoundError as error:
        named = os.environ.get("IMAGE_ASSETS_LANDING") or read_landing(settings.home)
        return Finding("failed" if named else "skipped", str(error))
    if not listing.names:
        skipped = f"; skipped: {listing.skipped}" if str(listing.skipped) else ""
        return Finding("warning", f"{settings.landing} contains no image files{skipped}")
    return Finding("ok", f"{settings.landing}, {len(listing.names):,} image files")


def labels() -> Finding:
    """The label table, if one is set: whether it can be read, and lists files that are there."""
    from image_assets.data.given_labels import label_rows, read_given
    from resources.files.image_folder import FolderUnavailable
    from resources.settings import image_folder, label_table, read_settings

    settings = read_settings()
    if not settings.labels:
        return Finding("skipped", "labels are the names of folders: IMAGE_ASSETS_LABELS is not set")
    table, folder = label_table(settings), image_folder(settings)
    found = table.read_all()
    rows = list(label_rows(found, table, folder.path))
    try:
        files = frozenset(folder.list_names().names)
    except FolderUnavailable:
        files = frozenset()
    listed = len(files & read_given(rows, folder.path, files, found.problems).keys())
    detail = f"{settings.labels} lists {listed:,} of {len(files):,} image files"
    if not files:
        return Finding("warning", f"{detail}; see landing")
    if not listed:
        example = f", such as {rows[0].path}" if rows else ""
        return Finding("failed", f"{detail}: none in {settings.landing} has one of its paths{example}")
    return Finding("ok", detail)


def tables() -> Finding:
    """The home's tables: each opens, and its newest commit is whole."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    from image_assets.schemas import TABLES
    from resources.delta.delta_log import fault_of_newest_commit
    from resources.settings import create_resources, read_settings

    settings = read_settings()
    delta_tables = create_resources(settings)["delta_tables"]
    found = [(table.name, uri) for table in TABLES if DeltaTable.is_deltatable(uri := delta_tables.uri(table))]
    damaged, rows = [], 0
    for name, uri in found:
        try:
            damage = fault_of_newest_commit(uri)
            rows += 0 if damage else DeltaTable(uri).count()
        except DeltaError as error:
            damage = str(error).partition("\n")[0]
        damaged += [f"{name}: {damage}"] if damage else []
    if not found:
        return Finding("skipped", f"no tables in {settings.storage} yet")
    detail = f"{len(found)} tables in {settings.storage}, {rows:,} rows"
    return Finding("failed", "; ".join(damaged)) if damaged else Finding("ok", detail)


def databases() -> Finding:
    """The home's SQLite databases: MLflow's and Dagster's."""
    from resources.home import databases, why_damaged
    from resources.settings import read_settings

    files = databases(read_settings().home)
    damaged = []
    for file in files:
        damage = why_damaged(file)
        try:
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
                found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            found = str(error)
        damage = damage or ("" if found == "ok" else found)
        damaged += [f"{file}: {damage}"] if damage else []
    if damaged:
        return Finding("failed", "; ".join(damaged))
    return Finding("ok", ", ".join(map(str, files))) if files else Finding("skipped", "not created yet")


def mlflow_store() -> Finding:
    """The MLflow store; a temporary one if the home has none yet."""
    from mlflow import MlflowClient

    from resources.mlflow.mlflow_tracking import refusals_explained
    from resources.settings import read_settings

    # By default MLflow retries for minutes.
    os.environ.update({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT_SECONDS)})
    settings = read_settings()
    uri, store = settings.tracking_uri, settings.home / "mlflow.db"
    with tempfile.TemporaryDirectory() as folder:
        is_new = uri == f"sqlite:///{store}" and not store.exists()
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db" if is_new else uri)
        with refusals_explained(uri, "list experiments and models", "READ"):
            experiments, models = len(client.search_experiments()), len(client.search_registered_models())
    where = "not created yet; a temporary one works" if is_new else uri
    return Finding("ok", f"{where}; experiments: {experiments}, registered models: {models}")


def web_pages() -> Finding:
    """The web pages that respond now: whether they reject requests from other websites."""
    from urllib3.exceptions import HTTPError

    from resources.settings import read_settings
    from resources.web_protection import accepted_from_other_sites
    from scripts.dev import FORMS

    settings = read_settings()
    urls = {"dagster": settings.dagster_url, "gallery": settings.gallery_url, "mlflow": settings.mlflow_url}
    accepted: dict[str, str] = {}
    for name, url in urls.items():
        with contextlib.suppress(HTTPError):  # it is not running
            accepted[name] = " and ".join(accepted_from_other_sites(url, FORMS[name]))
    if not accepted:
        return Finding("skipped", f"none responds; `{PROGRAM} dev` tests its pages whenever it starts")
    if unprotected := [f"{name} at {urls[name]} accepts {what}" for name, what in accepted.items() if what]:
        return Finding("failed", "; ".join(unprotected))
    return Finding("ok", f"{' and '.join(accepted)} reject requests from other websites")


def dagster_database() -> Finding:
    """The database for Dagster's runs and events."""
    import psycopg2
    from sqlalchemy.engine import make_url

    from resources.setting_values import DATABASE_VARIABLE
    from resources.settings import read_settings

    settings = read_settings()
    if not settings.dagster_on_postgres:
        return Finding("skipped", f"SQLite in {settings.dagster_home}")
    # As Dagster reads it: libpq would reject a `%` in the password, and repeat the password in its message.
    address = make_url(os.environ[DATABASE_VARIABLE])
    _, parts = address.get_dialect()().create_connect_args(address)
    connection = psycopg2.connect(**{"connect_timeout": TIMEOUT_SECONDS, **parts})
    try:
        parameters = connection.get_dsn_parameters()  # without its password
        with connection.cursor() as cursor:
            cursor.execute("SELECT has_schema_privilege(current_schema(), 'CREATE')")
            row = cursor.fetchone()
    finally:
        connection.close()
    where = f"{parameters.get('dbname')} on {parameters.get('host')} as {parameters.get('user')}"
    return Finding("ok", where) if row and row[0] else Finding("failed", f"{where}: not allowed to create tables")


def s3() -> Finding:
    """S3: listing what is in use, writing to the storage, and Spark's jars."""
    import boto3

    from resources.files.file_system import uncached_file_system
    from resources.files.s3 import SCHEME
    from resources.settings import read_settings

    settings = read_settings()
    storage, landing = str(settings.storage), str(settings.landing)
    urls = [place for place in (storage, landing) if place.startswith(SCHEME)]
    if not urls:
        return Finding("skipped", "neither the storage nor the landing folder is on S3")
    for url in urls:
        bucket, _, folder = url.removeprefix(SCHEME).partition("/")
        # An account may be limited to the folder, and the bucket may have millions of objects.
        boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{folder}/" if folder else "", MaxKeys=1)
    if storage in urls:
        system, path = uncached_file_system(f"{storage}/doctor-{uuid4()}")
        system.pipe_file(path, b"written by make doctor")
        system.rm_file(path)
    if missing := jars.list_missing(jars.spark_home() / "jars", jars.S3):
        return Finding("failed", f"{len(missing)} of {len(jars.S3.jars)} jars are missing, such as {missing[0]}")
    return Finding("ok", f"{' and '.join(urls)}; {len(jars.S3.jars)} jars")


def spark_master() -> Finding:
    """The Spark cluster, if one is set."""
    from urllib.parse import urlsplit

    from resources.settings import read_settings

    master = read_settings().spark_master
    if not master.startswith("spark://"):
        return Finding("skipped", f"{master}: no cluster to connect to")
    for address in master.removeprefix("spark://").split(","):
        parts = urlsplit(f"//{address}")
        socket.create_connection((parts.hostname or "", parts.port or 7077), timeout=TIMEOUT_SECONDS).close()
    return Finding("ok", master)


def alerts() -> Finding:
    """The alert rules and the addresses of their receivers; sends nothing."""
    from dagster import build_resources

    from image_assets.predictions.alert_rules import to_rules
    from image_assets.predictions.alert_sending import to_receivers
    from resources.settings import alert_sender, read_settings, rules_file

    settings = read_settings()
    file = rules_file(settings)
    rules = to_rules(file.text(), file.path)
    if not rules.rules:
        return Finding("skipped", f"no rules in {file.path}")
    with build_resources({"alert_sender": alert_sender(settings)}) as opened:
        receivers = to_receivers(rules, opened.alert_sender)
    return Finding("ok", f"{len(rules.rules)} rules in {file.path}, sent to {', '.join(receivers)}")
