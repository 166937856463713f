"""Protection of local web pages against the other sites that their user visits, and a test of whether a server has it.

Every site that a browser shows can send requests to 127.0.0.1. Browsers say where a request comes from (`Origin`,
`Sec-Fetch-Site`), and a name that another site points at this machine shows in `Host` (DNS rebinding).
"""

from collections.abc import Mapping, Sequence

import urllib3
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

HOSTS = ("127.0.0.1", "localhost")  # no other name may lead here
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
SAFE_METHODS = ("GET", "HEAD")
REFUSAL = "This request was sent from another page. Open this site in its own tab and try again."
FOREIGN = "evil.example"  # reserved for examples: no site has this name
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
PROBE_SECONDS = 10.0


def protection(headers: Mapping[str, str] | None = None, *, programs: bool = False) -> list[Middleware]:
    """The middleware of every web page that this project serves.

    Args:
        headers: More headers, for each response.
        programs: Whether programs may post as well, which send no `Origin`.
    """
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
        Middleware(Protection, headers=HEADERS | dict(headers or {}), programs=programs),
    ]


class Protection:
    """Middleware that rejects requests from other sites, WebSockets included, and adds headers to every response."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str], *, programs: bool) -> None:
        self._app, self._headers, self._programs = app, headers, programs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        sent = Headers(scope=scope)
        is_program = self._programs and "origin" not in sent and "sec-fetch-site" not in sent
        if is_program or is_allowed(scope.get("method"), sent):
            await self._app(scope, receive, send_with_headers)
        else:
            refusal = WebSocketClose() if scope["type"] == "websocket" else PlainTextResponse(REFUSAL, 403)
            await refusal(scope, receive, send_with_headers)


def is_allowed(method: str | None, headers: Headers) -> bool:
    """Whether a page of this server sent the request, or it is a link that leads here.

    Args:
        method: The HTTP method; None for a WebSocket, which any page may open.
        headers: The request's headers. Browsers add `Origin` to every form, every WebSocket and every request whose
            response a page of another site could read.
    """
    origins, site = headers.getlist("origin"), headers.get("sec-fetch-site", "same-origin")
    if any(origin != f"http://{headers.get('host')}" for origin in origins):
        return False
    if method not in SAFE_METHODS:
        return bool(origins) and site == "same-origin"
    # `none`: typed into the address bar. A page that follows a link to this one cannot read it, unless in a frame.
    is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return site in ("same-origin", "none") or is_link


def accepted_from_other_sites(url: str, path: str) -> Sequence[str]:
    """What a server accepts from other sites, in words; empty if it is protected. It changes nothing.

    Args:
        url: The address of the server, such as `http://127.0.0.1:3000`.
        path: A path to which its own pages post, where an empty form is harmless.

    Raises:
        urllib3.exceptions.HTTPError: The server does not respond.
    """
    foreign = {"Origin": f"http://{FOREIGN}"}

    def status(method: str, path: str, headers: Mapping[str, str]) -> int:
        pool = urllib3.PoolManager(timeout=PROBE_SECONDS, retries=False)
        address = f"{url.rstrip('/')}{path}"
        response = pool.request(method, address, headers=dict(headers), redirect=False, preload_content=False)
        response.close()
        return response.status

    return [
        what
        for what, accepted in (
            ("requests under any host name", status("GET", "/", {"Host": FOREIGN}) < 400),
            ("forms submitted by other sites", status("POST", path, foreign) not in (401, 403)),
            ("WebSockets opened by other sites", status("GET", path, foreign | HANDSHAKE) == 101),
        )
        if accepted
    ]
