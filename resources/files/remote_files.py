"""Downloads files from web servers, object stores and, if allowed, this machine.

Errors and results never contain a URL, because URLs may contain secrets.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from ipaddress import ip_address
from socket import socket
from tempfile import SpooledTemporaryFile
from typing import IO
from urllib.parse import unquote, urlsplit

from botocore.exceptions import BotoCoreError
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Retry, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, TimeoutError

from resources.files import file_system
from resources.files.file_system import to_time, uncached_file_system

WEB, STORES = ("http", "https"), ("s3", "gs", "az", "abfs")
BLOCK_BYTES = 1024 * 1024
IN_MEMORY_BYTES = 8 * 1024 * 1024  # larger files are buffered on disk
REDIRECTS = 5
TAGS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}  # response header with a version: request header
RETRIED_REASONS = ("timeout", "unreachable", "busy")  # a retry may succeed


class NotFetched(Exception):
    """Why a file was not downloaded: a one-word reason, and a message without its URL."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Fetched:
    """A complete file; `stamp` is its version as the server gives it, or empty."""

    stamp: str
    file: IO[bytes]
    length: int
    digest: str


def require_public(connected: socket | None) -> None:
    """Raises NotFetched if a connection leads to an address that is not public."""
    if connected is None:
        return
    address = ip_address(connected.getpeername()[0].partition("%")[0])
    if not (getattr(address, "ipv4_mapped", None) or address).is_global:
        raise NotFetched("private_address", "its server has a private address; set private_addresses to allow that")


class PublicConnection(HTTPConnection):
    """A connection to public addresses only, also after name resolution and redirects."""

    def connect(self) -> None:
        """Connects, and sends nothing if the address is private."""
        super().connect()
        require_public(self.sock)


class PublicTlsConnection(HTTPSConnection):
    """The same, encrypted."""

    def connect(self) -> None:
        """Connects, and sends nothing if the address is private."""
        super().connect()
        require_public(self.sock)


class PublicPool(HTTPConnectionPool):
    """A pool of connections to a server with a public address."""

    ConnectionCls = PublicConnection  # pyright: ignore[reportAssignmentType] - urllib3's own classes do not fit its protocol either


class PublicTlsPool(HTTPSConnectionPool):
    """The same, encrypted."""

    ConnectionCls = PublicTlsConnection  # pyright: ignore[reportAssignmentType] - urllib3's own classes do not fit its protocol either


@dataclass(frozen=True)
class RemoteFiles:
    """Downloads files within limits of size, time and source; safe to use from several threads."""

    max_bytes: int
    seconds: float
    attempts: int = 3
    private_addresses: bool = False
    local_files: bool = False
    web: PoolManager = field(init=False)

    def __post_init__(self) -> None:
        once = Retry(total=None, connect=0, read=0, status=0, other=0, redirect=REDIRECTS)
        web = PoolManager(retries=once, timeout=Timeout(connect=self.seconds, read=self.seconds), maxsize=64)
        if not self.private_addresses:
            web.pool_classes_by_scheme = {"http": PublicPool, "https": PublicTlsPool}
        object.__setattr__(self, "web", web)

    def fetch(self, address: str, stamp: str) -> Fetched | None:
        """Downloads the file; None if it still has this stamp. Raises NotFetched if it cannot be downloaded."""
        for attempt in range(self.attempts):
            try:
                return self._fetch_once(address, stamp)
            except NotFetched as error:
                if error.reason not in RETRIED_REASONS or attempt + 1 == self.attempts:
                    raise
                time.sleep(2**attempt)
        raise AssertionError("attempts is at least 1")

    def _fetch_once(self, address: str, stamp: str) -> Fetched | None:
        with errors_as_not_fetched():
            scheme = "file" if address.startswith("/") else urlsplit(address).scheme
            if scheme in WEB:
                return self._from_web(address, stamp)
            if scheme in STORES and "::" not in address:
                return self._from_store(address, stamp)
            if scheme == "file" and self.local_files:
                return self._from_disk(unquote(urlsplit(address).path) if "://" in address else address, stamp)
        if scheme == "file":
            raise NotFetched("local_file", "it is a file on this machine; set local_files to allow that")
        expected = ", ".join(f"{name}://" for name in (*WEB, *STORES))
        raise NotFetched("bad_address", f"expected a URL that begins with one of {expected}")

    def _from_web(self, address: str, stamp: str) -> Fetched | None:
        tag, _, value = stamp.partition(" ")
        headers = {"Accept-Encoding": "identity", **({TAGS[tag]: value} if tag in TAGS else {})}
        response = self.web.request("GET", address, headers=headers, preload_content=False, decode_content=False)
        try:
            if response.status == 304:
                return None
            if response.status != 200:
                raise NotFetched(to_reason(response.status), f"the server returned HTTP status {response.status}")
            tag = next((name for name in TAGS if response.headers.get(name)), "")
            length = response.headers.get("Content-Length", "")
            self._require_room(int(length) if length.isdecimal() else 0)
            blocks = iter(
                partial(response.read1, BLOCK_BYTES), b""
            )  # `read1` returns as soon as there is data, so that the time limit is checked often
            fetched = self._download(blocks, f"{tag} {response.headers[tag]}" if tag else "")
        except BaseException:
            response.close()  # a partly read connection cannot be reused
            raise
        response.release_conn()
        return fetched

    def _from_store(self, address: str, stamp: str) -> Fetched | None:
        system, path = uncached_file_system(address)
        info = system.info(path)
        tag = info.get("ETag") or info.get("etag")
        now = f"ETag {tag}" if tag else f"Last-Modified {to_time(info).isoformat()}"
        if now == stamp:
            return None
        self._require_room(info["size"])
        with system.open(path, "rb", block_size=BLOCK_BYTES) as file:
            return self._download(iter(partial(file.read, BLOCK_BYTES), b""), now)

    def _from_disk(self, name: str, stamp: str) -> Fetched | None:
        path = file_system.to_path(name.encode())
        found = file_system.stat_file(path)
        if found is None:
            raise FileNotFoundError
        now = f"{found.modification_time.isoformat()} {found.length}"
        if now == stamp:
            return None
        self._require_room(found.length)
        with file_system.open_file(path) as file:
            return self._download(iter(partial(file.read, BLOCK_BYTES), b""), now)

    def _require_room(self, length: int) -> None:
        if length > self.max_bytes:
            raise NotFetched("too_large", f"it is larger than the limit of {self.max_bytes:,} bytes")

    def _download(self, blocks: Iterable[bytes], stamp: str) -> Fetched:
        end, length, digest = time.monotonic() + self.seconds, 0, sha256()
        with ExitStack() as cleanup:
            file = cleanup.enter_context(SpooledTemporaryFile(IN_MEMORY_BYTES))
            for block in blocks:
                length += len(block)
                self._require_room(length)
                if time.monotonic() > end:
                    raise NotFetched("timeout", f"the download took longer than {self.seconds:g} s")
                digest.update(block)
                file.write(block)
            file.seek(0)
            cleanup.pop_all()
        return Fetched(stamp, file, length, digest.hexdigest())


def to_reason(status: int) -> str:
    """The one-word reason for an HTTP status."""
    if status in (404, 410):
        return "not_found"
    if status in (401, 403):
        return "forbidden"
    return "busy" if status == 429 or status >= 500 else "http_status"


@contextmanager
def errors_as_not_fetched() -> Iterator[None]:
    """Turns errors of the libraries into NotFetched, without their messages, which may contain the URL."""
    try:
        yield
    except ValueError as error:
        raise NotFetched("bad_address", f"it is not a valid URL: {type(error).__name__}") from None
    except FileNotFoundError as error:
        raise NotFetched("not_found", "the file does not exist") from error
    except PermissionError as error:
        raise NotFetched("forbidden", "access is denied") from error
    except HTTPError as error:
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        late = isinstance(cause, TimeoutError) and not isinstance(cause, NewConnectionError)
        reason = "timeout" if late else "unreachable"
        raise NotFetched(reason, f"its server did not respond completely: {type(cause).__name__}") from None
    except (OSError, BotoCoreError) as error:
        raise NotFetched("unreachable", f"it could not be read: {type(error).__name__}") from None
    except ImportError as error:
        raise NotFetched("no_library", f"the library for this URL is not installed: {error.name}") from None
