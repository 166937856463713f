"""What the doctor tries: one function for each part of the set-up, saying what it found or raising."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from scripts import jars, machine_checks, prerequisites, service_checks
from scripts.findings import Check, Finding, failed_if
from scripts.horovod_wheel import find_wheel

RANKS = 2


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


CHECKS = {
    "python": Check(python, "make install"),
    "java": Check(java, "install OpenJDK 17 or 21, or let JAVA_HOME name one"),
    "compiler": Check(compiler, "install g++ and python3.11-dev"),
    "delta jars": Check(delta_jars, ".venv/bin/python -m scripts.jars"),
    "horovod torch": Check(lambda: horovod(torch_sum), "rm .venv/installed, then make install"),
    "horovod tensorflow": Check(lambda: horovod(tensorflow_sum), "rm .venv/installed, then make install"),
    "spark and delta": Check(spark, "check java and delta jars above; unset SPARK_HOME and SPARK_CONF_DIR"),
    "petastorm": Check(petastorm, "rm .venv/installed, then make install"),
    "memory": Check(machine_checks.memory, "use a machine with more memory, or set IMAGE_ASSETS_PROCESSES=1"),
    "gpu": Check(machine_checks.gpu, "check the driver; CUDA_VISIBLE_DEVICES= leaves the GPU out"),
    "open files": Check(machine_checks.open_files, "ulimit -n 4096 in this shell, or nofile in limits.conf"),
    "clock": Check(machine_checks.clock, "set the clock, and let NTP keep it, here and on the file server"),
    "home": Check(machine_checks.home, "make it writable, or let IMAGE_ASSETS_HOME name another folder"),
    "locks": Check(machine_checks.locks, "let IMAGE_ASSETS_HOME and IMAGE_ASSETS_CACHES name folders on local disks"),
    "temporary files": Check(machine_checks.temporary_files, "make room there, or let TMPDIR name another folder"),
    "ports": Check(machine_checks.ports, "end what uses it, or name others: make dev DAGSTER_PORT=3001 …"),
    "landing": Check(landing, "let IMAGE_ASSETS_LANDING name a folder of images"),
    "mlflow store": Check(service_checks.mlflow_store, "check MLFLOW_TRACKING_URI and the account; docs/governance.md"),
    "dagster database": Check(service_checks.dagster_database, "start it, or correct IMAGE_ASSETS_DAGSTER_DATABASE"),
    "s3": Check(service_checks.s3, "make s3; check AWS_ENDPOINT_URL, AWS_REGION, the credentials and the bucket"),
    "spark master": Check(
        service_checks.spark_master, "start it (make cluster), or leave IMAGE_ASSETS_SPARK_MASTER out"
    ),
    "alerts": Check(service_checks.alerts, "docs/alerts.md has the rules and the addresses"),
    "chromium": Check(machine_checks.chromium, "apt install chromium"),
    "postgresql": Check(machine_checks.postgresql, "apt install postgresql"),
}
