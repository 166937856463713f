"""What the doctor tries: one function for each part of the set-up, saying what it found or raising."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from scripts import jars, prerequisites
from scripts.horovod_wheel import find_wheel

RANKS = 2
MEMORY_GIGABYTES = 6  # Spark takes 3 GB, two training processes about 1 GB each
FREE_GIGABYTES = 2


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    state: Literal["ok", "failed", "none"]
    detail: str


@dataclass(frozen=True)
class Check:
    """A part of the set-up: how it is tried, and what to do when it fails."""

    try_it: Callable[[], Finding]
    remedy: str


def failed_if(missing: prerequisites.Missing | None, detail: str) -> Finding:
    """Failed with what is missing, or ok with the detail."""
    return Finding("failed", missing.what) if missing else Finding("ok", detail)


def python() -> Finding:
    """Python 3.11, in this project's environment, with packages that fit together."""
    if missing := prerequisites.missing_python():
        return Finding("failed", missing.what)
    command = [sys.executable, "-m", "uv", "pip", "check", "--python", sys.executable]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    detail = answer.stderr.strip().splitlines()[-1] if answer.stderr else ""
    return Finding("failed" if answer.returncode else "ok", f"{sys.version.split()[0]} in {sys.prefix}; {detail}")


def java() -> Finding:
    """The Java that Spark starts."""
    found = prerequisites.find_java()
    return failed_if(prerequisites.missing_java(), f"{prerequisites.java_version(found)} ({found})" if found else "")


def compiler() -> Finding:
    """The C++ compiler, which only Horovod's build needs."""
    missing = prerequisites.missing_compiler()
    if missing and find_wheel():
        return Finding("none", "not needed: Horovod is built already")
    return failed_if(missing, "compiles C++17 with Python's headers")


def delta_jars() -> Finding:
    """Delta's jars beside Spark's."""
    folder = jars.spark_home() / "jars"
    if missing := jars.list_missing(folder):
        return Finding("failed", f"{', '.join(missing)}: missing or changed in {folder}")
    return Finding("ok", f"{len(jars.DELTA.jars)} jars in {folder}")


def torch_sum() -> float:
    """Runs on each rank: the sum of all ranks' numbers, by Horovod for torch."""
    import horovod.torch as hvd
    import torch

    hvd.init()
    return float(hvd.allreduce(torch.tensor(hvd.rank() + 1.0), op=hvd.Sum))


def tensorflow_sum() -> float:
    """Runs on each rank: the sum of all ranks' numbers, by Horovod for TensorFlow."""
    import horovod.tensorflow as hvd
    import tensorflow as tf

    hvd.init()
    return float(tf.convert_to_tensor(hvd.allreduce(tf.constant(hvd.rank() + 1.0), op=hvd.Sum)))


def horovod(on_each_rank: Callable[[], float]) -> Finding:
    """An allreduce over two processes."""
    from horovod import run

    sums = run(on_each_rank, np=RANKS, use_gloo=True)
    state = "ok" if sums == [3.0, 3.0] else "failed"
    return Finding(state, f"Horovod {version('horovod')}: two processes with 1 and 2 summed to {sums}")


def spark() -> Finding:
    """A Delta table written and read by the Spark session that the graph uses."""
    from dagster import build_init_resource_context

    from resources.environments import read_settings
    from resources.spark_session import spark_session

    settings = read_settings()
    with tempfile.TemporaryDirectory() as folder:
        resource = spark_session(settings.spark_master, scratch=folder)
        resource.setup_for_execution(build_init_resource_context())
        session = resource.spark_session
        session.range(10).write.format("delta").save(f"{folder}/numbers")
        rows = session.read.format("delta").load(f"{folder}/numbers").count()
        session.stop()
    state = "ok" if rows == 10 else "failed"
    return Finding(state, f"Spark {version('pyspark')} on {settings.spark_master}: 10 rows written, {rows} read")


def petastorm() -> Finding:
    """A Parquet file read by Petastorm."""
    import pyarrow as pa
    from petastorm import make_batch_reader
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        parquet.write_table(pa.table({"label_index": [0, 1, 2]}), Path(folder) / "rows.parquet")
        with make_batch_reader(Path(folder).as_uri(), num_epochs=1, workers_count=1) as reader:
            rows = sorted(int(index) for batch in reader for index in batch.label_index)
    state = "ok" if rows == [0, 1, 2] else "failed"
    return Finding(state, f"Petastorm {version('petastorm')}: rows 0, 1, 2 written, {rows} read")


def mlflow_store() -> Finding:
    """The MLflow store of the home; a temporary one where the home has none yet."""
    from mlflow import MlflowClient

    from resources.environments import read_settings

    settings = read_settings()
    uri, store = settings.tracking_uri, settings.home / "mlflow.db"
    with tempfile.TemporaryDirectory() as folder:
        is_new = uri == f"sqlite:///{store}" and not store.exists()
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db" if is_new else uri)
        experiments, models = len(client.search_experiments()), len(client.search_registered_models())
    where = "a new one, in a temporary folder, opens" if is_new else uri
    return Finding("ok", f"{where}; experiments: {experiments}, registered models: {models}")


def gpu() -> Finding:
    """NVIDIA's GPUs, which nothing here needs."""
    if shutil.which("nvidia-smi") is None:
        return Finding("none", "no nvidia-smi: training and predictions run on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return Finding("failed", f"nvidia-smi says {(answer.stdout or answer.stderr).strip()}")
    return Finding("ok", "; ".join(answer.stdout.strip().splitlines()))


def memory() -> Finding:
    """Memory, and disk where the home is, for a training."""
    import psutil

    total = psutil.virtual_memory().total / 1e9
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's own
    if limit.is_file() and limit.read_text().strip().isdecimal():
        total = min(total, int(limit.read_text()) / 1e9)
    detail = f"{total:.0f} GB of memory; {MEMORY_GIGABYTES} are needed"
    return Finding("ok" if total >= MEMORY_GIGABYTES else "failed", detail)


def home() -> Finding:
    """The home folder, or the nearest folder above it that exists: can it be written to, is there room?"""
    from resources.environments import read_settings

    wanted = read_settings().home
    existing = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    if missing := prerequisites.missing_access(existing):
        return Finding("failed", missing.what)
    free = shutil.disk_usage(existing).free / 1e9
    made = "" if existing == wanted else " (not made yet)"
    state = "ok" if free >= FREE_GIGABYTES else "failed"
    return Finding(state, f"{wanted}{made}, {free:.0f} GB free; {FREE_GIGABYTES} are needed")


def landing() -> Finding:
    """The folder where image files land."""
    from resources.environments import read_settings
    from resources.graph_resources import image_folder

    settings = read_settings()
    try:
        files = len(image_folder(settings).list_names().names)
    except FileNotFoundError:
        named = os.environ.get("IMAGE_ASSETS_LANDING") or settings.remembered_landing.is_file()
        return Finding("failed" if named else "none", f"{settings.landing} is not there")
    return Finding("ok", f"{settings.landing}, {files:,} image files")


def alerts() -> Finding:
    """The alert rules, and the addresses of those who are told by them; nobody is told anything."""
    from dagster import build_resources

    from image_assets.predictions.alert_rules import to_rules
    from image_assets.predictions.alert_sending import to_receivers
    from resources.environments import read_settings
    from resources.graph_resources import alert_sender, rules_file

    settings = read_settings()
    file = rules_file(settings)
    rules = to_rules(file.text(), file.path)
    if not rules.rules:
        return Finding("none", f"no rules in {file.path}")
    with build_resources({"alert_sender": alert_sender(settings)}) as ready:
        receivers = to_receivers(rules, ready.alert_sender)
    return Finding("ok", f"{len(rules.rules)} rules in {file.path}, told to {', '.join(receivers)}")


CHECKS = {
    "python": Check(python, "make install"),
    "java": Check(java, "install OpenJDK 17 or 21, or let JAVA_HOME name one"),
    "compiler": Check(compiler, "install g++ and python3.11-dev"),
    "delta jars": Check(delta_jars, ".venv/bin/python -m scripts.jars"),
    "horovod torch": Check(lambda: horovod(torch_sum), "rm .venv/installed, then make install"),
    "horovod tensorflow": Check(lambda: horovod(tensorflow_sum), "rm .venv/installed, then make install"),
    "spark and delta": Check(spark, "check java and delta jars above; unset SPARK_HOME and SPARK_CONF_DIR"),
    "petastorm": Check(petastorm, "rm .venv/installed, then make install"),
    "mlflow store": Check(mlflow_store, "check MLFLOW_TRACKING_URI, or move the home's mlflow.db away"),
    "gpu": Check(gpu, "check the driver; CUDA_VISIBLE_DEVICES= leaves the GPU out"),
    "memory": Check(memory, "use a machine with more memory, or set IMAGE_ASSETS_PROCESSES=1"),
    "home": Check(home, "make it writable, or let IMAGE_ASSETS_HOME name another folder"),
    "landing": Check(landing, "let IMAGE_ASSETS_LANDING name a folder of images"),
    "alerts": Check(alerts, "docs/alerts.md has the rules and the addresses"),
}
