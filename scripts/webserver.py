"""Dagster's and MLflow's web servers, protected like the gallery.

`python -m scripts.webserver` takes the options of `dagster-webserver`, and serves the pictures of the home as well.
Dagster itself accepts requests and WebSockets of any site under any host name, and executes mutations sent by GET: any
page on the internet could start jobs.

`mlflow server --app-name image-assets` runs `mlflow_app`, an entry point in pyproject.toml. MLflow itself accepts the
requests of every page that another port of this machine serves.
"""

import os
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resources.pictures import ADDRESS, FOLDER
from resources.processes.child_process import end_with_parent
from resources.settings import read_settings
from resources.web_protection import SAFE_METHODS, protection

GRAPHQL_PATH = "/graphql"


class PictureFiles:
    """Middleware that serves the pictures that metadata links to; browsers run no script in them."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app, self._files = app, StaticFiles(directory=folder, check_dir=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{ADDRESS}/"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = "sandbox; default-src 'none'"
            await send(message)

        try:
            await self._files({**scope, "path": scope["path"].removeprefix(ADDRESS)}, receive, send_with_headers)
        except HTTPException as error:
            await PlainTextResponse(error.detail, error.status_code)(scope, receive, send)


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

    end_with_parent(os.getppid())  # `mlflow server` starts this process, and may be killed
    protected: ASGIApp = app
    for middleware in reversed(protection(programs=True)):
        protected = middleware.cls(protected, *middleware.args, **middleware.kwargs)
    return protected


def main() -> None:
    """Run Dagster's server, whose middleware is a method that deployments may replace."""
    from dagster_webserver.cli import main as run
    from dagster_webserver.webserver import DagsterWebserver

    unprotected = DagsterWebserver.build_middleware
    pictures = Middleware(PictureFiles, folder=read_settings().home / FOLDER)

    def build_middleware(self: DagsterWebserver) -> list[Middleware]:
        return [*protection(), Middleware(NoQueriesByGet), pictures, *unprotected(self)]

    DagsterWebserver.build_middleware = build_middleware
    run()


if __name__ == "__main__":
    main()
