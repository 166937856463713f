"""Delta's jars and those for S3, downloaded once per user and copied into Spark, so that starting needs no network."""

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
    """Jars that belong together: their cache folder, the packages to resolve, the files, and excluded packages."""

    folder: str
    packages: tuple[str, ...]
    # prefix that Spark's resolver adds to the file name, file name, SHA-256
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
# Hadoop's S3A with the parts of the AWS SDK that it uses: 9 MB. The complete bundle that it depends on has 558 MB.
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
    """The folder of the installed Spark."""
    found = importlib.util.find_spec("pyspark")
    if found is None or found.origin is None:
        raise SystemExit(f"pyspark is not installed for {sys.executable}: run `make install`")
    return Path(found.origin).parent


def cache_folder() -> Path:
    """The cache that all clones of this user share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "image-assets"


def list_missing(folder: Path, wanted: JarSet = DELTA) -> list[str]:
    """Names of the jars that are missing in the folder, or differ from the released ones."""
    return [
        name
        for _, name, digest in wanted.jars
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]


def copy(source: Path, target: Path) -> None:
    """Copies the file atomically, replacing a hard link to another environment's file instead of writing through it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    shutil.copyfile(source, unfinished)
    unfinished.replace(target)


def download(folder: Path, wanted: JarSet) -> None:
    """Downloads the jars into the folder with Spark's own resolver, by submitting an empty program."""
    packages = ",".join(wanted.packages)
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "empty.py"
        program.touch()
        submit = [str(spark_home() / "bin" / "spark-submit"), "--master", "local", "--packages", packages]
        if wanted.excluded:
            submit += ["--exclude-packages", ",".join(wanted.excluded)]
        environment = {**os.environ, "SPARK_HOME": str(spark_home()), "PYSPARK_PYTHON": sys.executable}
        command = [*submit, "--conf", f"spark.jars.ivy={scratch}", str(program)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if process.returncode != 0:
            raise SystemExit(
                f"{process.stdout}{process.stderr}\nSpark could not download {packages}. Behind a proxy, set "
                "SPARK_SUBMIT_OPTS='-Dhttps.proxyHost=<host> -Dhttps.proxyPort=<port>' and run it again."
            )
        for prefix, name, _ in wanted.jars:
            copy(Path(scratch) / "jars" / f"{prefix}{name}", folder / name)
    if wrong := list_missing(folder, wanted):
        raise SystemExit(
            f"{', '.join(wrong)} in {folder} differ from the released files; check where Spark downloads from"
        )


def add_to_spark(wanted: JarSet) -> None:
    """Copies missing jars into Spark's folder, downloading them first if the cache lacks them."""
    spark_jars, cache = spark_home() / "jars", cache_folder() / wanted.folder
    if not list_missing(spark_jars, wanted):
        return
    if list_missing(cache, wanted):
        print(f"  downloading {', '.join(wanted.packages)}", flush=True)
        download(cache, wanted)
    for _, name, _ in wanted.jars:
        copy(cache / name, spark_jars / name)


def main(chosen: str = "delta") -> None:
    """Adds Delta's jars and removes those of other Delta versions; or adds the jars for S3."""
    if chosen == "s3":
        add_to_spark(S3)
        print(f"Spark in {spark_home()} can now read and write s3://")
        return
    add_to_spark(DELTA)
    for jar in (spark_home() / "jars").glob("delta-*.jar"):
        if jar.name not in {name for _, name, _ in DELTA.jars}:
            jar.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
