"""What keeps other pages of the same browser out: only this machine's names, own forms, no content but our own."""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")  # another name that leads here is somebody's trick (DNS rebinding)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with `no-referrer` a form would not say which page it is on
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
SAFE = ("GET", "HEAD")


class Protection:
    """Refuses what another site's page makes a browser send, and says in each answer what may be done with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["method"] in SAFE or from_own_page(Headers(scope=scope)):
            await self._app(scope, receive, protected)
        else:
            refusal = PlainTextResponse("This form was sent by another page: open the gallery itself.", 403)
            await refusal(scope, receive, protected)


def from_own_page(headers: Headers) -> bool:
    """Whether a form was sent by a page of this very server: every browser says so of what changes something."""
    return headers.get("origin") == f"http://{headers.get('host')}" and (
        headers.get("sec-fetch-site", "same-origin") == "same-origin"
    )
