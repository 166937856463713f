"""Delta's jars, and those for S3, laid beside Spark's own: fetched once for a user, then no start needs the network."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class JarSet:
    """Jars that belong together: the folder they are kept in, the packages they come from, and what is left out."""

    folder: str
    packages: tuple[str, ...]
    # what Spark's resolver puts before the file's name, the file, its SHA-256
    jars: tuple[tuple[str, str, str], ...]
    excluded: tuple[str, ...] = ()


DELTA = JarSet(
    "delta-4.0.1",
    ("io.delta:delta-spark_2.13:4.0.1",),
    (
        ("io.delta_", "delta-spark_2.13-4.0.1.jar", "a1e76860b19fe1e6b205a4ea7a9099a2f9575d39bb71d49b3e679b299d0efb91"),
        ("io.delta_", "delta-storage-4.0.1.jar", "ecc42c5aaa51c423312d9e4e48aa4a12b34740bf2c37de0e8f279277ec3d12e4"),
        ("org.antlr_", "antlr4-runtime-4.13.1.jar", "54665d2838cc66458343468efc539e454fc95b46a8a04b13c6ac43fc9be63505"),
    ),
)
# Hadoop's S3A with the parts of Amazon's SDK that it uses: 9 MB. The bundle of all parts, which it asks for, has 558.
S3_FILES = [line.split() for line in Path(__file__).with_name("s3_jars.sha256").read_text().splitlines()]
S3 = JarSet(
    "s3-3.4.1",
    (
        "org.apache.hadoop:hadoop-aws:3.4.1",
        *(f"software.amazon.awssdk:{part}:2.24.9" for part in ("s3", "s3-transfer-manager", "sts")),
    ),
    tuple(("", name, digest) for digest, name in S3_FILES),
    excluded=("software.amazon.awssdk:bundle", "org.wildfly.openssl:wildfly-openssl"),
)


def spark_home() -> Path:
    """The folder of this environment's Spark."""
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise SystemExit(f"pyspark is not installed for {sys.executable}: run make install")
    return Path(found.origin).parent


def cache_folder() -> Path:
    """Where this user's clones share the jars."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-assets"


def list_missing(folder: Path, wanted: JarSet = DELTA) -> list[str]:
    """The jars that the folder lacks, or has with other bytes than were released."""
    return [
        name
        for _, name, digest in wanted.jars
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]


def copy(source: Path, target: Path) -> None:
    """Copy the file under its name at once: never half of it, never into a file shared with other environments."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    shutil.copyfile(source, unfinished)
    unfinished.replace(target)


def fetch(folder: Path, wanted: JarSet) -> None:
    """Fetch the jars into the folder by Spark's own resolver, which runs before any program does: here an empty one."""
    packages = ",".join(wanted.packages)
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "nothing.py"
        program.touch()
        submit = [str(spark_home() / "bin" / "spark-submit"), "--master", "local", "--packages", packages]
        if wanted.excluded:
            submit += ["--exclude-packages", ",".join(wanted.excluded)]
        environment = {**os.environ, "SPARK_HOME": str(spark_home()), "PYSPARK_PYTHON": sys.executable}
        command = [*submit, "--conf", f"spark.jars.ivy={scratch}", str(program)]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise SystemExit(
                f"{answer.stdout}{answer.stderr}\nSpark could not fetch {packages}. Behind a proxy, set "
                "SPARK_SUBMIT_OPTS='-Dhttps.proxyHost=<host> -Dhttps.proxyPort=<port>'; then run it again."
            )
        for prefix, name, _ in wanted.jars:
            copy(Path(scratch) / "jars" / f"{prefix}{name}", folder / name)
    if wrong := list_missing(folder, wanted):
        raise SystemExit(f"{', '.join(wrong)} in {folder}: not the released bytes; check where Spark fetches from")


def lay(wanted: JarSet) -> None:
    """Put what is missing beside Spark's jars."""
    spark_jars, cache = spark_home() / "jars", cache_folder() / wanted.folder
    if not list_missing(spark_jars, wanted):
        return
    if list_missing(cache, wanted):
        print(f"  fetching {', '.join(wanted.packages)}", flush=True)
        fetch(cache, wanted)
    for _, name, _ in wanted.jars:
        copy(cache / name, spark_jars / name)


def main(chosen: str = "delta") -> None:
    """Delta's jars, in place of those of another Delta version; or those for S3."""
    if chosen == "s3":
        lay(S3)
        print(f"Spark in {spark_home()} reads and writes s3://")
        return
    lay(DELTA)
    for jar in (spark_home() / "jars").glob("delta-*.jar"):
        if jar.name not in {name for _, name, _ in DELTA.jars}:
            jar.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
