"""S3-compatible storage as Spark gets at it; delta-rs, fsspec and MLflow read the same `AWS_…` variables themselves.

Credentials go from environment to environment: no setting holds them.
"""

from collections.abc import Mapping
from pathlib import Path

import pyspark

SCHEME = "s3://"
# What a process must know to read and write; roles of machines and pods need none of it.
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ALLOW_HTTP",
)
PLAIN = "http://"
SPARK_READS_S3 = "spark.hadoop.fs.s3.impl"


def require_supported_location(name: str, location: str, variables: Mapping[str, str]) -> None:
    """ValueError where what the variable names is no folder and nothing on S3 that every library opens."""
    if "://" not in location:
        return
    if not location.startswith(SCHEME):
        raise ValueError(f"{name} is {location!r}: expected a folder, or {SCHEME}<bucket>/<prefix>")
    endpoint = variables.get("AWS_ENDPOINT_URL") or ""
    if endpoint.startswith(PLAIN) and variables.get("AWS_ALLOW_HTTP") != "true":
        raise ValueError(
            f"{name} is on S3, and AWS_ENDPOINT_URL is {endpoint!r}, where nothing is encrypted: name an https "
            "address, or set AWS_ALLOW_HTTP=true where that is no concern"
        )


def spark_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """What Spark is told: `s3://` is read and written by S3A, as delta-rs and fsspec spell it."""
    settings = {
        SPARK_READS_S3: "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.AbstractFileSystem.s3.impl": "org.apache.hadoop.fs.s3a.S3A",
        # Spark's own pattern, and names of variables: what shows settings hides these.
        "spark.redaction.regex": "(?i)secret|password|token|access[._]?key",
    }
    if endpoint := variables.get("AWS_ENDPOINT_URL"):
        settings |= {"spark.hadoop.fs.s3a.endpoint": endpoint, "spark.hadoop.fs.s3a.path.style.access": "true"}
    if region := variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION"):
        settings["spark.hadoop.fs.s3a.endpoint.region"] = region
    return settings


def require_jars() -> None:
    """FileNotFoundError where Spark has not what it reads S3 with."""
    folder = Path(pyspark.__file__).parent / "jars"
    if not any(folder.glob("*hadoop-aws-*.jar")):
        raise FileNotFoundError(f"{folder} holds no jars for S3: run `make s3`")


def worker_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that Python processes of executors get; their Java side hears of them from Spark itself."""
    return {name: variables[name] for name in VARIABLES if variables.get(name)}
