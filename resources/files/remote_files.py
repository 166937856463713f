"""Files by their addresses: from web servers, object stores and, where that is allowed, this machine.

What is raised and returned names no address: some hold what nobody may see.
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
IN_MEMORY_BYTES = 8 * 1024 * 1024  # larger files wait on disk for their place
REDIRECTS = 5
TAGS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}  # what tells versions, how one asks for another
RETRIED_REASONS = ("timeout", "unreachable", "busy")  # another attempt may end otherwise


class NotFetched(Exception):
    """Why a file was not fetched: in one word, and in a sentence without its address."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


@dataclass(frozen=True)
class Fetched:
    """A whole file; `stamp` is what its server tells versions by, empty where it does not."""

    stamp: str
    file: IO[bytes]
    length: int
    digest: str


def require_public(connected: socket | None) -> None:
    """NotFetched where a connection leads to an address that the internet does not have."""
    if connected is None:
        return
    address = ip_address(connected.getpeername()[0].partition("%")[0])
    if not (getattr(address, "ipv4_mapped", None) or address).is_global:
        raise NotFetched("private_address", "its server has a private address: allow them where that is meant")


class PublicConnection(HTTPConnection):
    """A connection that is made to public addresses only, whatever a name or a redirect leads to."""

    def connect(self) -> None:
        """Connect, and ask for nothing where that was to a private address."""
        super().connect()
        require_public(self.sock)


class PublicTlsConnection(HTTPSConnection):
    """The same, encrypted."""

    def connect(self) -> None:
        """Connect, and ask for nothing where that was to a private address."""
        super().connect()
        require_public(self.sock)


class PublicPool(HTTPConnectionPool):
    """Connections to a server with a public address."""

    ConnectionCls = PublicConnection  # pyright: ignore[reportAssignmentType] - neither do urllib3's own fit its protocol


class PublicTlsPool(HTTPSConnectionPool):
    """The same, encrypted."""

    ConnectionCls = PublicTlsConnection  # pyright: ignore[reportAssignmentType] - neither do urllib3's own fit its protocol


@dataclass(frozen=True)
class RemoteFiles:
    """Fetches files, also from several threads: no larger, no longer than this, and not from everywhere."""

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
        """The file; None where it is still the one with this stamp. NotFetched says why there is none."""
        for attempt in range(self.attempts):
            try:
                return self._fetch_once(address, stamp)
            except NotFetched as error:
                if error.reason not in RETRIED_REASONS or attempt + 1 == self.attempts:
                    raise
                time.sleep(2**attempt)
        raise AssertionError("at least one attempt is made")

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
            raise NotFetched("local_file", "a file of this machine: allow them where that is meant")
        expected = ", ".join(f"{name}://" for name in (*WEB, *STORES))
        raise NotFetched("bad_address", f"expected an address that begins with one of {expected}")

    def _from_web(self, address: str, stamp: str) -> Fetched | None:
        tag, _, value = stamp.partition(" ")
        headers = {"Accept-Encoding": "identity", **({TAGS[tag]: value} if tag in TAGS else {})}
        answer = self.web.request("GET", address, headers=headers, preload_content=False, decode_content=False)
        try:
            if answer.status == 304:
                return None
            if answer.status != 200:
                raise NotFetched(to_reason(answer.status), f"the server answered with HTTP status {answer.status}")
            tag = next((name for name in TAGS if answer.headers.get(name)), "")
            length = answer.headers.get("Content-Length", "")
            self._require_room(int(length) if length.isdecimal() else 0)
            blocks = iter(partial(answer.read1, BLOCK_BYTES), b"")  # as they come: the clock is looked at after each
            fetched = self._download(blocks, f"{tag} {answer.headers[tag]}" if tag else "")
        except BaseException:
            answer.close()  # what was not read to its end cannot be used again
            raise
        answer.release_conn()
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
            raise NotFetched("too_large", f"more than {self.max_bytes:,} bytes: expected at most as many")

    def _download(self, blocks: Iterable[bytes], stamp: str) -> Fetched:
        end, length, digest = time.monotonic() + self.seconds, 0, sha256()
        with ExitStack() as cleanup:
            file = cleanup.enter_context(SpooledTemporaryFile(IN_MEMORY_BYTES))
            for block in blocks:
                length += len(block)
                self._require_room(length)
                if time.monotonic() > end:
                    raise NotFetched("timeout", f"it had not come within {self.seconds:g} s")
                digest.update(block)
                file.write(block)
            file.seek(0)
            cleanup.pop_all()
        return Fetched(stamp, file, length, digest.hexdigest())


def to_reason(status: int) -> str:
    """What an HTTP status says, in one word."""
    if status in (404, 410):
        return "not_found"
    if status in (401, 403):
        return "forbidden"
    return "busy" if status == 429 or status >= 500 else "http_status"


@contextmanager
def errors_as_not_fetched() -> Iterator[None]:
    """Turn what libraries raise of addresses that do not answer into NotFetched; their words may hold the address."""
    try:
        yield
    except ValueError as error:
        raise NotFetched("bad_address", f"it is no address: {type(error).__name__}") from None
    except FileNotFoundError as error:
        raise NotFetched("not_found", "there is no such file") from error
    except PermissionError as error:
        raise NotFetched("forbidden", "it may not be read") from error
    except HTTPError as error:
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        late = isinstance(cause, TimeoutError) and not isinstance(cause, NewConnectionError)
        reason = "timeout" if late else "unreachable"
        raise NotFetched(reason, f"no whole answer came from its server: {type(cause).__name__}") from None
    except (OSError, BotoCoreError) as error:
        raise NotFetched("unreachable", f"it could not be read: {type(error).__name__}") from None
    except ImportError as error:
        raise NotFetched("no_library", f"the library that reads it is not installed: {error.name}") from None
