"""A local web server that serves images and can misbehave in many ways."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

SLOW_BYTES, SECONDS_PER_BYTE = 80, 0.1  # finite: where nothing ends the wait, a test fails instead of hanging


@dataclass
class ImageServer:
    """The images by path, other responses by path, and the requests so far."""

    address: str = ""
    images: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)  # of the next responses
    redirects: dict[str, str] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)  # the first bytes one by one, for some seconds
    slow_headers: set[str] = field(default_factory=set)  # the same before the content
    cut: set[str] = field(default_factory=set)  # sent without the last byte
    untagged: set[str] = field(default_factory=set)  # sent without an ETag
    asked: list[tuple[str, int]] = field(default_factory=list)
    connections: int = 0

    def statuses_of(self, path: str) -> list[int]:
        """Return the status of each response for a path."""
        return [status for asked, status in self.asked if asked == path]


@contextmanager
def image_server() -> Iterator[ImageServer]:
    """Run a server without images on a free port."""
    served = ImageServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are used again

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            content = served.images.get(path)
            tag = f'"{sha256(content or b"").hexdigest()[:8]}"'
            if waiting := served.statuses.get(path):
                self.answer(path, waiting.pop(0))
            elif path in served.redirects:
                self.answer(path, 302, Location=served.redirects[path])
            elif content is None:
                self.answer(path, 404)
            elif self.headers.get("If-None-Match") == tag:
                self.answer(path, 304)
            else:
                more = {} if path in served.untagged else {"ETag": tag}
                self.answer(path, 200, **{"Content-Length": str(len(content)), **more})
                slowly = SLOW_BYTES if path in served.slow else 0
                for byte in content[:slowly]:
                    time.sleep(SECONDS_PER_BYTE)
                    self.wfile.write(bytes([byte]))
                self.wfile.write(content[slowly : -1 if path in served.cut else None])
                self.close_connection = path in served.cut

        def answer(self, path: str, status: int, **headers: str) -> None:
            served.asked.append((path, status))
            self.send_response(status)
            for number in range(SLOW_BYTES if path in served.slow_headers else 0):
                time.sleep(SECONDS_PER_BYTE)
                self.send_header(f"X-{number}", "slow")
                self.flush_headers()
            for name, value in ({"Content-Length": "0"} | headers).items():
                self.send_header(name, value)
            self.end_headers()

        def handle(self) -> None:
            served.connections += 1
            with suppress(ConnectionError):  # the client did not wait
                super().handle()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        served.address = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
