"""Tests of downloads: complete files, once per version, with errors that do not contain the URL."""

import os
import socket
import socketserver
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import boto3
import pytest

from resources.files.remote_files import IN_MEMORY_BYTES, NotFetched, RemoteFiles
from tests.support.image_server import SECONDS_PER_BYTE, SLOW_BYTES, ImageServer, image_server
from tests.support.images import png
from tests.support.receivers import serving
from tests.support.s3_server import BUCKET, s3_server

HOST = "127.0.0.1"
SECRET = "a-token-that-nobody-may-see"


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as served:
        served.images = {f"/{name}.png": png(number) for number, name in enumerate(("rose", "slow", "cut", "plain"))}
        yield served


def remote(**settings: object) -> RemoteFiles:
    return RemoteFiles(**{"max_bytes": 10**6, "seconds": 5, "private_addresses": True, **settings})  # pyright: ignore[reportArgumentType] - values of several types


def test_a_file_is_downloaded_completely_and_once_per_version(server: ImageServer) -> None:
    files, address = remote(), f"{server.address}/rose.png"
    first = files.fetch(address, "")
    assert first is not None
    with first.file as file:
        assert file.read() == png(0)
    assert (first.length, first.digest) == (len(png(0)), sha256(png(0)).hexdigest())
    assert files.fetch(address, first.stamp) is None
    server.images["/rose.png"] = png(9)
    second = files.fetch(address, first.stamp)
    assert second is not None
    assert second.stamp != first.stamp
    assert server.statuses_of("/rose.png") == [200, 304, 200]


def test_checking_unchanged_files_takes_one_connection(server: ImageServer) -> None:
    files, address = remote(), f"{server.address}/rose.png"
    first = files.fetch(address, "")
    assert first is not None
    assert [files.fetch(address, first.stamp) for _ in range(5)] == [None] * 5
    assert server.connections == 1


def test_a_file_without_versions_is_downloaded_every_time(server: ImageServer) -> None:
    server.untagged = {"/plain.png"}
    files, address = remote(), f"{server.address}/plain.png"
    stamps = [fetched.stamp for _ in range(2) if (fetched := files.fetch(address, ""))]
    assert stamps == ["", ""]


def test_a_busy_server_is_retried(server: ImageServer) -> None:
    server.statuses = {"/rose.png": [503, 429]}
    assert remote().fetch(f"{server.address}/rose.png", "") is not None
    assert server.statuses_of("/rose.png") == [503, 429, 200]


def test_a_redirect_is_followed(server: ImageServer) -> None:
    server.redirects = {"/here": "/rose.png"}
    assert remote().fetch(f"{server.address}/here", "") is not None


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("/none.png", "not_found"),
        ("/forbidden.png", "forbidden"),
        ("/teapot.png", "http_status"),
        ("/busy.png", "busy"),
        ("/slow.png", "timeout"),
        ("/cut.png", "unreachable"),
        ("/loop.png", "unreachable"),
        ("/to-a-file.png", "bad_address"),
        ("/large.png", "too_large"),
    ],
)
def test_failures_have_a_reason_without_the_url(server: ImageServer, place: str, reason: str) -> None:
    server.statuses = {"/forbidden.png": [403], "/teapot.png": [418], "/busy.png": [500] * 9}
    server.redirects = {"/loop.png": "/loop.png", "/to-a-file.png": "file:///etc/passwd"}
    server.slow, server.cut = {"/slow.png"}, {"/cut.png"}
    server.images["/large.png"] = bytes(10**6 + 1)
    with pytest.raises(NotFetched) as found:
        remote(seconds=1, attempts=1).fetch(f"{server.address}{place}?token={SECRET}", "")
    assert found.value.reason == reason
    for text in (found.value.message, repr(found.value)):
        assert SECRET not in text
        assert "127.0.0.1" not in text


@pytest.mark.parametrize("place", ["/slow.png", "/slow_headers.png", "/slow_redirect.png"])
def test_a_server_that_sends_a_little_at_a_time_is_cut_off_at_the_deadline(server: ImageServer, place: str) -> None:
    server.images["/slow_headers.png"] = png(3)
    server.redirects = {"/slow_redirect.png": "/rose.png"}
    server.slow, server.slow_headers = {"/slow.png"}, {"/slow_headers.png", "/slow_redirect.png"}
    started = time.monotonic()
    with pytest.raises(NotFetched, match="took longer than 1 s") as found:
        remote(seconds=1, attempts=1).fetch(f"{server.address}{place}", "")
    assert time.monotonic() - started < 3
    assert found.value.reason == "timeout"


@contextmanager
def port_that_answers(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port on which each connection gets this answer."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                answer(self.request)

    with socketserver.ThreadingTCPServer((HOST, 0), Handler) as listener, serving(listener):
        yield listener.server_address[1]


def test_a_tls_handshake_that_never_ends_is_cut_off_at_the_deadline() -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"\x16\x03\x03\x40\x00")  # the start of a record of 16 KiB
        for _ in range(SLOW_BYTES):
            time.sleep(SECONDS_PER_BYTE)
            connection.sendall(b"\x00")

    started = time.monotonic()
    with port_that_answers(drip) as port, pytest.raises(NotFetched, match="took longer than 1 s"):
        remote(seconds=1, attempts=1).fetch(f"https://{HOST}:{port}/rose.png", "")
    assert time.monotonic() - started < 3


def test_a_connection_that_is_used_again_is_cut_off_too(server: ImageServer) -> None:
    files = remote(seconds=1, attempts=1)
    assert files.fetch(f"{server.address}/rose.png", "") is not None
    server.slow_headers = {"/plain.png"}
    started = time.monotonic()
    with pytest.raises(NotFetched, match="took longer than 1 s"):
        files.fetch(f"{server.address}/plain.png", "")
    assert time.monotonic() - started < 3


def test_a_deadline_that_passed_ends_nothing_later(server: ImageServer) -> None:
    files = remote(seconds=0.3, attempts=1)
    for _ in range(3):
        assert files.fetch(f"{server.address}/rose.png", "") is not None
        time.sleep(0.4)


def test_reading_a_local_file_ends_at_the_deadline(tmp_path: Path) -> None:
    (tmp_path / "rose.png").write_bytes(png(1))
    with pytest.raises(NotFetched, match="took longer than"):
        remote(local_files=True, seconds=1e-9, attempts=1).fetch(str(tmp_path / "rose.png"), "")


def test_tls_is_restricted_to_public_addresses_before_anything_is_sent() -> None:
    received = []
    with port_that_answers(lambda connection: received.append(connection.recv(1))) as port:
        with pytest.raises(NotFetched) as found:
            remote(private_addresses=False, attempts=1).fetch(f"https://{HOST}:{port}/rose.png", "")
        assert found.value.reason == "private_address"
        with suppress(NotFetched):
            remote(seconds=1, attempts=1).fetch(f"https://{HOST}:{port}/rose.png", "")
    assert received == [b"", b"\x16"]  # the second one began a handshake


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_private_addresses_get_no_request(server: ImageServer, host: str) -> None:
    with pytest.raises(NotFetched) as found:
        remote(private_addresses=False).fetch(server.address.replace("127.0.0.1", host) + "/rose.png", "")
    assert found.value.reason == "private_address"
    assert server.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "",
        "rose.png",
        "ftp://example.com/rose.png",
        "memory://rose.png",
        "http://[",
        "s3://bucket/a::file:///etc/passwd",
    ],
)
def test_other_addresses_are_rejected(address: str) -> None:
    with pytest.raises(NotFetched) as found:
        remote(local_files=True).fetch(address, "")
    assert found.value.reason == "bad_address"


def test_local_files_are_read_only_if_allowed(tmp_path: Path) -> None:
    file = tmp_path / "a rose.png"
    file.write_bytes(png(1))
    for address in (str(file), file.as_uri()):
        with pytest.raises(NotFetched, match="a file on this machine; to allow that, see .* local_files"):
            remote().fetch(address, "")
        files = remote(local_files=True)
        fetched = files.fetch(address, "")
        assert fetched is not None
        assert fetched.file.read() == png(1)
        assert files.fetch(address, fetched.stamp) is None


def test_a_disk_that_is_full_is_not_blamed_on_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large.png"
    file.write_bytes(bytes(IN_MEMORY_BYTES + 1))
    monkeypatch.setattr(tempfile, "tempdir", "/dev/full")
    with pytest.raises(NotFetched, match="cannot write temporary files: .*; free space, or set TMPDIR") as found:
        remote(local_files=True, max_bytes=10**8).fetch(str(file), "")
    assert found.value.reason == "not_written"


def test_local_links_and_pipes_are_never_opened(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("link.png", "pipe.png", "none.png"):
        with pytest.raises(NotFetched):
            remote(local_files=True, attempts=1).fetch(str(tmp_path / name), "")


def test_objects_are_downloaded_from_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.put_object(Bucket=BUCKET, Key="photos/a #1.png", Body=png(1))
        files, address = remote(), f"s3://{BUCKET}/photos/a #1.png"
        fetched = files.fetch(address, "")
        assert fetched is not None
        assert fetched.file.read() == png(1)
        assert files.fetch(address, fetched.stamp) is None
        client.put_object(Bucket=BUCKET, Key="photos/a #1.png", Body=png(2))
        assert files.fetch(address, fetched.stamp) is not None
        with pytest.raises(NotFetched, match="the file does not exist"):
            files.fetch(f"s3://{BUCKET}/photos/none.png", "")
