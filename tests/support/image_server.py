"""A web server on this machine that hands out images, and whatever else a server may do."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


@dataclass
class ImageServer:
    """What it hands out by path, how it answers by path instead, and what it was asked."""

    address: str = ""
    images: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)  # answers to the next requests
    redirects: dict[str, str] = field(default_factory=dict)
    slow: set[str] = field(default_factory=set)  # their bytes come one by one
    cut: set[str] = field(default_factory=set)  # their last byte never comes
    untagged: set[str] = field(default_factory=set)  # nothing tells their versions
    asked: list[tuple[str, int]] = field(default_factory=list)

    def statuses_of(self, path: str) -> list[int]:
        """How requests for a path were answered."""
        return [status for asked, status in self.asked if asked == path]


@contextmanager
def image_server() -> Iterator[ImageServer]:
    """A server on a free port, without images."""
    served = ImageServer()

    class Handler(BaseHTTPRequestHandler):
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
                for byte in content if path in served.slow else ():
                    time.sleep(0.05)
                    self.wfile.write(bytes([byte]))
                if path not in served.slow:
                    self.wfile.write(content[: -1 if path in served.cut else None])

        def answer(self, path: str, status: int, **headers: str) -> None:
            served.asked.append((path, status))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

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
