"""An archive of the classes that Spark and Delta load, with which a JVM starts in half the time.

`python -m tests.support.java_classes FOLDER` does a little of what the tests do with Spark.
"""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pyspark

from tests.support.small_spark import small_spark

ROOT = Path(__file__).parents[2]


def class_archive(options: str) -> Path:
    """The archive for the jars of this environment, made on first use by a JVM with the options.

    A JVM for which it does not fit, or that finds none, starts without it.
    """
    jars = sorted((jar.name, jar.stat().st_mtime_ns) for jar in Path(pyspark.__file__).parent.glob("jars/*.jar"))
    archive = ROOT / "build" / f"spark-{sha256(str(jars).encode()).hexdigest()[:16]}.jsa"
    if not archive.exists():
        archive.parent.mkdir(exist_ok=True)
        new = archive.with_suffix(f".{os.getpid()}")
        environment = {**os.environ, "SPARK_SUBMIT_OPTS": f"{options} -XX:ArchiveClassesAtExit={new}"}
        with TemporaryDirectory() as folder:
            command = [sys.executable, "-m", __name__, folder]
            # Ends when the JVM has ended as well, because that has the same output.
            subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        if new.exists():
            new.replace(archive)
    return archive


def main(folder: str) -> None:
    """Write, change and read a Delta table."""
    from delta.tables import DeltaTable

    session, uri = small_spark(folder).spark_session, f"{folder}/table"
    rows = session.createDataFrame([(1, b"content", "label")], "number long, content binary, label string")
    for _ in range(2):
        rows.write.format("delta").mode("append").save(uri)
    table = DeltaTable.forPath(session, uri)
    table.alias("old").merge(rows.alias("new"), "old.number = new.number").whenMatchedUpdateAll().execute()
    table.optimize().executeCompaction()
    found = session.read.format("delta").load(uri).mapInArrow(lambda batches: batches, rows.schema)
    found.join(rows, "number", "left_anti").union(found).groupBy("label").count().collect()
    session.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
