"""Local receivers of messages for tests: a webhook and a mail server with configurable responses."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "tOps3cret"  # a part of each address
DROP, HANG = "drop", "hang"  # responses besides a status: close the connection, or send nothing


@dataclass
class Inbox:
    """The messages of a receiver and its responses: `answers` one by one, then success."""

    port: int = 0
    answers: list[int | str] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)  # all, with their id and the answer
    before_answer: Callable[[], object] = lambda: None
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """The messages that were accepted."""
        return [message for message in self.messages if message["answer"] == 200]

    def texts(self) -> str:
        """Return the texts of the accepted messages."""
        return "\n".join(message["message"] for message in self.accepted)

    def take(self, message: dict[str, Any]) -> int | str:
        """Store a message and return the response."""
        answer = self.answers.pop(0) if self.answers else 200
        self.messages.append({**message, "answer": answer})
        self.before_answer()
        return answer


class Quiet(ThreadingHTTPServer):
    """A server that reports no error when a client is killed."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[None]:
    """Run the server during the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def webhook() -> Iterator[Inbox]:
    """A receiver of apprise's `json://` messages."""
    inbox = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = inbox.take({**body, "id": self.headers["Idempotency-Key"], "path": self.path})
            if answer == HANG:
                inbox.released.wait(30)
            if isinstance(answer, int):
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with Quiet(("127.0.0.1", 0), Handler) as server, serving(server):
        inbox.port = server.server_port
        yield inbox
        inbox.released.set()


@contextmanager
def mail_server() -> Iterator[Inbox]:
    """A mail server that supports just enough SMTP to receive a message."""
    inbox = Inbox()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 good day")
            for line in self.rfile:
                if line.upper().startswith(b"DATA"):
                    self.say("354 go on")
                    text = b"".join(iter(self.rfile.readline, b".\r\n"))
                    answer = inbox.take({"message": text.decode()})
                    if answer == DROP:
                        return
                    self.say("250 thank you" if answer == 200 else f"{answer} no")
                else:
                    self.say("221 bye" if line.upper().startswith(b"QUIT") else "250 yes")

        def say(self, words: str) -> None:
            self.wfile.write(f"{words}\r\n".encode())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server, serving(server):
        inbox.port = server.server_address[1]
        yield inbox
