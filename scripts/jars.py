"""Delta's jars, laid beside Spark's own: fetched once for a user, then no start needs the network."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "io.delta:delta-spark_2.13:4.0.1"
# what Spark's resolver puts before the file's name, the file, its SHA-256
JARS = (
    ("io.delta_", "delta-spark_2.13-4.0.1.jar", "a1e76860b19fe1e6b205a4ea7a9099a2f9575d39bb71d49b3e679b299d0efb91"),
    ("io.delta_", "delta-storage-4.0.1.jar", "ecc42c5aaa51c423312d9e4e48aa4a12b34740bf2c37de0e8f279277ec3d12e4"),
    ("org.antlr_", "antlr4-runtime-4.13.1.jar", "54665d2838cc66458343468efc539e454fc95b46a8a04b13c6ac43fc9be63505"),
)


def spark_home() -> Path:
    """The folder of this environment's Spark."""
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise SystemExit(f"pyspark is not installed for {sys.executable}: run make install")
    return Path(found.origin).parent


def cache_folder() -> Path:
    """Where this user's clones share the jars."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-assets" / "delta-4.0.1"


def list_missing(folder: Path) -> list[str]:
    """The jars that the folder lacks, or has with other bytes than were released."""
    return [
        name
        for _, name, digest in JARS
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]


def copy(source: Path, target: Path) -> None:
    """Copy the file under its name at once: never half of it, never into a file shared with other environments."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    shutil.copyfile(source, unfinished)
    unfinished.replace(target)


def fetch(folder: Path) -> None:
    """Fetch the jars into the folder by Spark's own resolver, which runs before any program does: here an empty one."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "nothing.py"
        program.touch()
        submit = [str(spark_home() / "bin" / "spark-submit"), "--master", "local", "--packages", PACKAGE]
        environment = {**os.environ, "SPARK_HOME": str(spark_home()), "PYSPARK_PYTHON": sys.executable}
        command = [*submit, "--conf", f"spark.jars.ivy={scratch}", str(program)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise SystemExit(
                f"{answer.stdout}{answer.stderr}\nSpark could not fetch {PACKAGE}. Behind a proxy, set "
                "SPARK_SUBMIT_OPTS='-Dhttps.proxyHost=<host> -Dhttps.proxyPort=<port>'; then run it again."
            )
        for prefix, name, _ in JARS:
            copy(Path(scratch) / "jars" / f"{prefix}{name}", folder / name)
    if wrong := list_missing(folder):
        raise SystemExit(f"{', '.join(wrong)} in {folder}: not the released bytes; check where Spark fetches from")


def main() -> None:
    """Put what is missing beside Spark's jars, in place of those of another Delta version."""
    spark_jars, cache = spark_home() / "jars", cache_folder()
    if not list_missing(spark_jars):
        return
    if list_missing(cache):
        print(f"  fetching {PACKAGE}", flush=True)
        fetch(cache)
    names = [name for _, name, _ in JARS]
    for name in names:
        copy(cache / name, spark_jars / name)
    for jar in spark_jars.glob("delta-*.jar"):
        if jar.name not in names:
            jar.unlink()


if __name__ == "__main__":
    main()
