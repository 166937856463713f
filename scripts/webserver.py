"""Dagster's web server, protected like the gallery: `python -m scripts.webserver` takes `dagster-webserver`'s options.

Dagster itself accepts requests and WebSockets of any site under any host name, and executes mutations sent by GET, so
any page on the internet that the user opens could start jobs.
"""

from dagster_webserver.cli import main
from dagster_webserver.webserver import DagsterWebserver
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from resources.web_protection import SAFE_METHODS, protection

GRAPHQL_PATH = "/graphql"


class NoQueriesByGet:
    """Middleware that rejects GraphQL in a URL, which any link or image can contain. The UI posts its queries."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        by_address = scope["type"] == "http" and scope["method"] in SAFE_METHODS and scope["query_string"]
        if by_address and scope["path"].rstrip("/").endswith(GRAPHQL_PATH):
            await PlainTextResponse("GraphQL is accepted by POST only.", 405, {"Allow": "POST"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def protect() -> None:
    """Makes every Dagster web server of this process protected."""
    unprotected = DagsterWebserver.build_middleware

    def build_middleware(self: DagsterWebserver) -> list[Middleware]:
        return [*protection(), Middleware(NoQueriesByGet), *unprotected(self)]

    DagsterWebserver.build_middleware = build_middleware


if __name__ == "__main__":
    protect()
    main()
