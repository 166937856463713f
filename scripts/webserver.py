"""Dagster's and MLflow's web servers, protected like the gallery.

`python -m scripts.webserver` takes the options of `dagster-webserver`. Dagster itself accepts requests and WebSockets
of any site under any host name, and executes mutations sent by GET: any page on the internet could start jobs.

`mlflow server --app-name image-assets` runs `mlflow_app`, an entry point in pyproject.toml. MLflow itself accepts the
requests of every page that another port of this machine serves.
"""

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


def mlflow_app() -> ASGIApp:
    """MLflow's server; its Python client and other programs may use it as before."""
    from mlflow.server.fastapi_app import app

    protected: ASGIApp = app
    for middleware in reversed(protection(programs=True)):
        protected = middleware.cls(protected, *middleware.args, **middleware.kwargs)
    return protected


def main() -> None:
    """Run Dagster's server, whose middleware is a method that deployments may replace."""
    from dagster_webserver.cli import main as run
    from dagster_webserver.webserver import DagsterWebserver

    unprotected = DagsterWebserver.build_middleware

    def build_middleware(self: DagsterWebserver) -> list[Middleware]:
        return [*protection(), Middleware(NoQueriesByGet), *unprotected(self)]

    DagsterWebserver.build_middleware = build_middleware
    run()


if __name__ == "__main__":
    main()
