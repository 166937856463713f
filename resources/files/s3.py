"""Spark's settings for S3-compatible storage; delta-rs, fsspec and MLflow read the same `AWS_…` variables themselves.

Credentials are only passed from environment to environment and are never in settings.
"""

from collections.abc import Mapping
from pathlib import Path

import pyspark

SCHEME = "s3://"
# What a process needs to read and write; not needed if the machine or pod has a role.
VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ALLOW_HTTP",
)
UNENCRYPTED = "http://"
SPARK_READS_S3 = "spark.hadoop.fs.s3.impl"


def require_supported_location(name: str, location: str, variables: Mapping[str, str]) -> None:
    """A ValueError unless the variable `name` contains a folder, or an S3 URL that every library can open."""
    if "://" not in location:
        return
    if not location.startswith(SCHEME):
        raise ValueError(f"{name} is {location!r}: expected a folder, or {SCHEME}<bucket>/<prefix>")
    endpoint = variables.get("AWS_ENDPOINT_URL") or ""
    if endpoint.startswith(UNENCRYPTED) and variables.get("AWS_ALLOW_HTTP") != "true":
        raise ValueError(
            f"{name} is on S3, but AWS_ENDPOINT_URL is {endpoint!r}, which is not encrypted: use an https URL, or set "
            "AWS_ALLOW_HTTP=true to accept that"
        )


def spark_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """Spark's settings: S3A handles `s3://` URLs, the scheme that delta-rs and fsspec use."""
    settings = {
        SPARK_READS_S3: "org.apache.hadoop.fs.s3a.S3AFileSystem",
        "spark.hadoop.fs.AbstractFileSystem.s3.impl": "org.apache.hadoop.fs.s3a.S3A",
        # Spark's default pattern plus the variables' names: Spark hides the values of these settings.
        "spark.redaction.regex": "(?i)secret|password|token|access[._]?key",
    }
    if endpoint := variables.get("AWS_ENDPOINT_URL"):
        settings |= {"spark.hadoop.fs.s3a.endpoint": endpoint, "spark.hadoop.fs.s3a.path.style.access": "true"}
    if region := variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION"):
        settings["spark.hadoop.fs.s3a.endpoint.region"] = region
    return settings


def require_jars() -> None:
    """A FileNotFoundError if Spark's jars for S3 are missing."""
    folder = Path(pyspark.__file__).parent / "jars"
    if not any(folder.glob("*hadoop-aws-*.jar")):
        raise FileNotFoundError(f"{folder} contains no jars for S3: run `make s3` or `image-assets s3`")


def worker_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables to pass to the executors' Python processes; their JVMs get them from Spark."""
    return {name: variables[name] for name in VARIABLES if variables.get(name)}
