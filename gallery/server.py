"""The gallery's server: its addresses, and what they lead to."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gallery.corrections import StaleImage, keep, to_corrections
from gallery.index import LiveIndex
from gallery.neighbours import KeptEmbeddings
from gallery.pages import WORDS, image_page, images_page
from gallery.queries import Filters, WrongFilter, read_image
from gallery.thumbnails import SIDE_PIXELS, Content, KeptFolder, NoPicture, Size, Thumbnails, no_picture
from resources.delta.thin_tables import ThinTables
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry
from resources.settings import Settings, local

HERE = Path(__file__).parent
PERSON = "corrected_by"  # the cookie that spares a person their name
A_YEAR = 365 * 24 * 3600
MOST_BYTES = 16 * 1024  # of a form
FOREVER = "private, max-age=31536000, immutable"  # an image_id tells the very bytes
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


@dataclass(frozen=True)
class Gallery:
    """What the pages of one home are made of.

    `landing` is the folder whose sub-folders are the labels, `links` say where other UIs are seen.
    """

    thin_tables: ThinTables
    landing: str
    index: LiveIndex
    thumbnails: Thumbnails
    embeddings: KeptEmbeddings
    links: Mapping[str, str]


class Site:
    """The answers to a gallery's addresses. Starlette runs each on a thread."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,  # file names and labels are whatever somebody called a file
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(WORDS)
        self._templates.globals["links"] = gallery.links

    def images(self, request: Request) -> Response:
        """A page of images; a form's address is made short first."""
        filters = Filters.read(request.query_params)
        short = filters.changed(page=filters.page).removeprefix("?")
        if short != request.url.query:
            return RedirectResponse(f"/?{short}", 303)
        return self._page("images.html", images_page(self._gallery.index.now(), filters))

    def image(self, request: Request) -> Response:
        """All that is known of one image."""
        said = request.query_params
        gallery = self._gallery
        found = image_page(gallery.index.now(), gallery.thin_tables, gallery.embeddings, said)
        if found is None:
            raise no_such_file(said)
        form = {
            "query": request.url.query,
            "person": unquote(request.cookies.get(PERSON, "")) or os.environ.get("USER", ""),
        }
        return self._page("image.html", found | form)

    async def correct(self, request: Request) -> Response:
        """Keep what a person says of an image's label, and go back to its page."""
        if int(request.headers.get("content-length") or MOST_BYTES + 1) > MOST_BYTES:
            raise HTTPException(413, f"expected a form of at most {MOST_BYTES:,} bytes")
        said = dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True))
        await run_in_threadpool(self._correct, request.query_params, said)
        answer = RedirectResponse(f"/image?{request.url.query}", 303)
        answer.set_cookie(PERSON, quote(said["corrected_by"]), max_age=A_YEAR, httponly=True, samesite="strict")
        return answer

    def _correct(self, query: Mapping[str, str], said: Mapping[str, str]) -> None:
        gallery, index = self._gallery, self._gallery.index.now()
        image = read_image(index, query.get("path", ""))
        if image is None:
            raise no_such_file(query)
        keep(gallery.thin_tables, to_corrections(index, image, said, gallery.landing))
        gallery.index.refresh_corrections()

    def picture(self, request: Request) -> Response:
        """A picture of an image that could be read, by its id; others are never decoded here."""
        image_id, size = request.path_params["image_id"], request.path_params["size"]
        tag = f'"{image_id}-{size}"'
        query = "SELECT image_id, path, length FROM featured WHERE image_id = ? LIMIT 1"
        found = self._gallery.index.now().rows(query, [image_id])
        if size not in SIDE_PIXELS or not found:
            raise HTTPException(404, "there is no such picture")
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304)
        try:
            picture = self._gallery.thumbnails.picture(Content(**found[0]), cast(Size, size))
        except NoPicture:
            return Response(no_picture(), 404, {"Cache-Control": "no-store"}, "image/png")
        return Response(picture, 200, {"Cache-Control": FOREVER, "ETag": tag}, "image/jpeg")

    def refused(self, _: Request, error: Exception) -> Response:
        """What is wrong with an address, in words."""
        status, said = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
        status = 409 if isinstance(error, StaleImage) else status
        return self._page("refused.html", {"said": said, "status": status}, status)

    def _page(self, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
        html = self._templates.get_template(template).render(values)
        return HTMLResponse(html, status, {"Cache-Control": "no-store"})


def no_such_file(said: Mapping[str, str]) -> HTTPException:
    """The answer to a path that the ledger does not know."""
    return HTTPException(404, f"image_files has no file with the path {said.get('path', '')[:500]!r}")


def build_app(gallery: Gallery) -> Starlette:
    """The server of a gallery."""
    site = Site(gallery)
    return Starlette(
        routes=[
            Route("/", site.images),
            Route("/image", site.image),
            Route("/corrections", site.correct, methods=["POST"]),
            Route("/images/{image_id}/{size}", site.picture),
            Route("/health", lambda _: PlainTextResponse("ok")),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(Protection),
        ],
        exception_handlers=dict.fromkeys((HTTPException, WrongFilter, StaleImage), site.refused),
    )


def gallery_of(settings: Settings) -> Gallery:
    """The gallery of the home that the settings name."""
    resources = local(settings)
    thin_tables = cast(ThinTables, resources["thin_tables"])
    landing, registry = cast(ImageFolder, resources["image_folder"]), cast(ModelRegistry, resources["model_registry"])
    return Gallery(
        thin_tables=thin_tables,
        landing=landing.path,
        index=LiveIndex(thin_tables, registry),
        thumbnails=Thumbnails(thin_tables, KeptFolder(settings.home / "gallery")),
        embeddings=KeptEmbeddings(settings.caches),
        links={"Dagster": settings.dagster_url, "MLflow": settings.mlflow_url},
    )


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
