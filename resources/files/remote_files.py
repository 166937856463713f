"""Downloads files from web servers, object stores and, if allowed, this machine.

Errors and results never contain a URL, because URLs may contain secrets.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from ipaddress import ip_address
from socket import SHUT_RDWR, socket
from tempfile import SpooledTemporaryFile
from threading import Lock, Timer
from typing import IO, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Retry, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, MaxRetryError, NewConnectionError, TimeoutError

from resources.files import file_system
from resources.files.file_system import UNREACHABLE, to_time, uncached_file_system

WEB, STORES = ("http", "https"), ("s3", "gs", "az", "abfs")
BLOCK_BYTES = 1024 * 1024
IN_MEMORY_BYTES = 8 * 1024 * 1024  # larger files are buffered on disk
REDIRECTS = 5
TAGS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}  # response header with a version: request header
TO_ALLOW = "to allow that, see IMAGE_ASSETS_FETCH_ALLOW and"
TOO_LONG = "the download took longer than {:g} s"
RETRIED_REASONS = ("timeout", "unreachable", "busy")  # a retry may succeed
# What the words in a query parameter's name say about its value: access_token, accessToken, AWSAccessKeyId, apikey.
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
SECRETS = {
    *("sig", "hmac", "jwt", "passphrase", "pw", "key", "auth", "oauth", "authorization", "bearer"),
    *("session", "sessionid", "sessid", "jsessionid", "phpsessid"),
}
SECRET_ENDING = re.compile(
    r"(token|secret|passw(or)?d|pwd|signature|credential"
    r"|(api|app|access|secret|auth|shared|user|subscription|license|sign|private|client|session)key)(s|id)?$"
)
FORMER_SECRET = re.compile(r"token|sig|secret|passw|pwd|key|credential|auth|session|^x-(amz|goog)-", re.IGNORECASE)
OF_SIGNED_URLS = ("x-amz-", "x-goog-")


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


def is_secret(parameter: str) -> bool:
    """Whether a query parameter's name says that its value is a secret."""
    name = unquote(parameter)
    words = {*(word.lower() for word in WORDS.findall(name)), re.sub("[^a-z]+", "", name.lower())}
    return bool(words & SECRETS) or any(map(SECRET_ENDING.search, words)) or name.lower().startswith(OF_SIGNED_URLS)


def was_secret(parameter: str) -> bool:
    """The same as earlier versions decided it, whose rows are still in the table."""
    return bool(FORMER_SECRET.search(parameter))


def redacted(address: str, hides: Callable[[str], bool] = is_secret) -> str:
    """The address without account, values that look like secrets and, on the web, fragment."""
    parts = urlsplit(address)
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    query = "&".join(f"{name}{sign}{'…' if hides(name) else value}" for name, sign, value in pairs)
    fragment = "" if parts.scheme in WEB else parts.fragment  # of a file or object, `#` is in the name
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, fragment))


class Guard:
    """Watches the connection of one download: where it leads, and that it ends at the deadline.

    The timeout of a socket starts anew with each byte that a server sends, so a slow server could hold it forever.
    """

    def __init__(self, private_addresses: bool) -> None:
        self.late = False
        self._private_addresses, self._lock = private_addresses, Lock()
        self._connection: socket | None = None

    def watch(self, connected: socket) -> None:
        """Takes over a connection; NotFetched if it leads to an address that is not public, though it must."""
        address = ip_address(connected.getpeername()[0].partition("%")[0])
        if not self._private_addresses and not (getattr(address, "ipv4_mapped", None) or address).is_global:
            raise NotFetched("private_address", f"its server has a private address; {TO_ALLOW} private_addresses")
        self.close()
        with self._lock:
            # A duplicate, because TLS takes the descriptor away from the socket. Both stand for the same connection.
            self._connection = socket(fileno=os.dup(connected.fileno()))
            self._end_if_late()

    def end(self) -> None:
        """Ends the connection, which wakes the thread that waits for it."""
        with self._lock:
            self.late = True
            self._end_if_late()

    def close(self) -> None:
        """Leaves the connection alone from now on."""
        with self._lock:
            if self._connection:
                self._connection.close()
            self._connection = None

    def _end_if_late(self) -> None:
        if self.late and self._connection:
            with suppress(OSError):  # it has ended already
                self._connection.shutdown(SHUT_RDWR)


GUARD: ContextVar[Guard] = ContextVar("guard")  # of the download in this thread


@contextmanager
def guarded(seconds: float, *, private_addresses: bool) -> Iterator[None]:
    """Watches this thread's connections; NotFetched if the block takes longer than `seconds`."""
    guard = Guard(private_addresses)
    token, timer = GUARD.set(guard), Timer(seconds, guard.end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (HTTPError, OSError, ValueError, NotFetched):
        if not guard.late:  # else it is a consequence
            raise
    finally:
        timer.cancel()
        GUARD.reset(token)
        guard.close()
    if guard.late:  # cut off in the headers, a response looks complete
        raise NotFetched("timeout", TOO_LONG.format(seconds))


class GuardedConnection(HTTPConnection):
    """A connection that is watched from the moment it is open, before anything is sent."""

    @property
    def sock(self) -> socket | None:  # pyright: ignore[reportIncompatibleVariableOverride] - a variable in http.client
        """The open socket."""
        return self._sock

    @sock.setter
    def sock(self, sock: socket | None) -> None:
        if sock:
            try:
                GUARD.get().watch(sock)
            except BaseException:
                sock.close()
                raise
        self._sock = sock

    def request(self, *arguments: Any, **options: Any) -> None:  # Any: passed on
        """Sends a request, maybe on a connection of an earlier download."""
        if self.sock:
            GUARD.get().watch(self.sock)
        super().request(*arguments, **options)


class GuardedTlsConnection(GuardedConnection, HTTPSConnection):
    """The same, encrypted."""


class GuardedPool(HTTPConnectionPool):
    """A pool of guarded connections."""

    ConnectionCls = GuardedConnection  # pyright: ignore[reportAssignmentType] - urllib3's own classes do not fit its protocol either


class GuardedTlsPool(HTTPSConnectionPool):
    """The same, encrypted."""

    ConnectionCls = GuardedTlsConnection  # pyright: ignore[reportAssignmentType] - urllib3's own classes do not fit its protocol either


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
        web.pool_classes_by_scheme = {"http": GuardedPool, "https": GuardedTlsPool}
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
            raise NotFetched("local_file", f"it is a file on this machine; {TO_ALLOW} local_files")
        expected = ", ".join(f"{name}://" for name in (*WEB, *STORES))
        raise NotFetched("bad_address", f"expected a URL that begins with one of {expected}")

    def _from_web(self, address: str, stamp: str) -> Fetched | None:
        tag, _, value = stamp.partition(" ")
        headers = {"Accept-Encoding": "identity", **({TAGS[tag]: value} if tag in TAGS else {})}
        with guarded(self.seconds, private_addresses=self.private_addresses):
            response = self.web.request("GET", address, headers=headers, preload_content=False, decode_content=False)
            try:
                fetched = None if response.status == 304 else self._from_response(response)
            except BaseException:
                response.close()  # a partly read connection cannot be reused
                raise
        response.release_conn()
        return fetched

    def _from_response(self, response: BaseHTTPResponse) -> Fetched:
        if response.status != 200:
            raise NotFetched(to_reason(response.status), f"the server returned HTTP status {response.status}")
        tag = next((name for name in TAGS if response.headers.get(name)), "")
        length = response.headers.get("Content-Length", "")
        self._require_room(int(length) if length.isdecimal() else 0)
        blocks = iter(partial(response.read, BLOCK_BYTES), b"")
        return self._download(blocks, f"{tag} {response.headers[tag]}" if tag else "")

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
                    raise NotFetched("timeout", TOO_LONG.format(self.seconds))
                digest.update(block)
                write(file, block)
            file.seek(0)
            cleanup.pop_all()
        return Fetched(stamp, file, length, digest.hexdigest())


def write(file: IO[bytes], block: bytes) -> None:
    """Writes to a temporary file; NotFetched if that fails, which is not the server's fault."""
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        why = f"cannot write temporary files: {error.strerror or error}; free space, or set TMPDIR to another folder"
        raise NotFetched("not_written", why) from error


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
    except UNREACHABLE as error:
        raise NotFetched("unreachable", f"it could not be read: {type(error).__name__}") from None
    except ImportError as error:
        raise NotFetched("no_library", f"the library for this URL is not installed: {error.name}") from None
