"""A local in-memory S3 server, by moto."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.cluster import HOST, free_port, wait_until_open

BUCKET = "a-bucket"
SECRET = "a-secret-that-nobody-may-see"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run a server with a bucket, and yield the environment variables for its clients."""
    import boto3
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # of file systems with the address of another server
    port = free_port()
    command = [Path(sys.executable).parent / "moto_server", "-H", HOST, "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until_open(port)
            variables = {
                "AWS_ACCESS_KEY_ID": "a-key",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
                "AWS_ALLOW_HTTP": "true",
            }
            session = boto3.Session("a-key", SECRET, region_name="us-east-1")
            session.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
            yield variables
        finally:
            server.terminate()
