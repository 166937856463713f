"""The gallery's web server: routes and request handlers."""

import asyncio
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, quote, unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gallery.explanations import Explanations, Question
from gallery.neighbors import LiveEmbeddings
from gallery.pages import TEMPLATE_FILTERS, image_page, images_page
from gallery.queries import all_labels, read_image
from gallery.thumbnails import (
    SIDE_PIXELS,
    Content,
    FolderCache,
    PictureUnavailable,
    Size,
    Thumbnails,
    message_picture,
    placeholder,
)
from image_assets.data.folder_layout import FolderLayout, read_layout
from image_assets.data.label_corrections import Correction, append_corrections, label_problem
from image_assets.models.explanations import NotExplained
from image_assets.predictions.image_filters import Filters, InvalidInput, Row
from image_assets.predictions.image_index import Index, LiveIndex
from resources.delta.delta_log import BrokenTable, LostTable
from resources.delta.delta_tables import DeltaTables
from resources.files.image_folder import ImageFolder
from resources.mlflow.model_registry import ModelRegistry
from resources.settings import Settings, create_resources
from resources.web_protection import protection

MAX_LENGTHS = {"corrected_by": 100, "comment": 1000}
NO_LABEL = "none"  # the field `kind` of an image that belongs to none of the labels
UNDO = "folder"  # the field `kind` of an image whose folder's label applies again
CONTENT = "SELECT image_id, path, length FROM featured WHERE image_id = ? LIMIT 1"
FOLDER = Path(__file__).parent
NAME_COOKIE = "corrected_by"  # remembers a person's name for the next correction
YEAR_SECONDS = 365 * 24 * 3600
MAX_FORM_BYTES = 16 * 1024
IMMUTABLE = "private, max-age=31536000, immutable"  # the URL contains the hash of the image's bytes
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",  # with `no-referrer`, browsers send forms with the origin "null"
}


class StaleImage(ValueError):
    """A form about a file whose content has changed since the form was opened."""


STATUS_CODES: Mapping[type[Exception], int] = {InvalidInput: 400, StaleImage: 409, LostTable: 503, BrokenTable: 503}


def to_corrections(index: Index, image: Row, form: Mapping[str, str], layout: FolderLayout) -> list[Correction]:
    """The corrections that a form asks for: one for each current file with the image's bytes that it changes.

    Args:
        index: The index.
        image: The image of the form's page.
        form: The fields `image_id`, `kind`, `label`, `new_label`, `corrected_by` and `comment`.
        layout: Which label a file's folders give it.

    Raises:
        StaleImage: The file has other bytes than when the form was opened.
        InvalidInput: A field has a value that is not allowed, or the form changes nothing.
    """
    if form.get("image_id") != image["image_id"] or not image["width"]:
        raise StaleImage("The file has changed since you opened this page. Reload the page and check the image again.")
    texts = {name: form.get(name, "").strip() for name in MAX_LENGTHS}
    for name, maximum in MAX_LENGTHS.items():
        if len(texts[name]) > maximum:
            raise InvalidInput(f"{name} has {len(texts[name])} characters: expected at most {maximum}")
    if not texts["corrected_by"]:
        raise InvalidInput("corrected_by is empty: expected your name")
    undo = form.get("kind") == UNDO
    copies = "SELECT path, label, corrected FROM images WHERE image_id = ? AND (state = 'current' OR path = ?)"
    label = None if undo else chosen_label(form, all_labels(index))
    label = label and layout.merge(label)
    files = index.rows(copies, [image["image_id"], image["path"]])
    changed = [file for file in files if (file["corrected"] if undo else file["label"] != label)]
    if not changed:
        current = f"The label is {image['label']} already" if image["label"] else "The image has no label already"
        raise InvalidInput(f"{current}, so nothing was saved. Go back to choose another label.")
    return [
        Correction(
            path=file["path"],
            image_id=image["image_id"],
            label=layout.label(file["path"]) if undo else label,
            former_label=file["label"],
            withdrawn=undo,
            corrected_by=texts["corrected_by"],
            comment=texts["comment"] or None,
        )
        for file in changed
    ]


def chosen_label(form: Mapping[str, str], existing: Collection[str]) -> str | None:
    """The label that a form sets: a new label takes precedence over a selected one. None for no label.

    Existing labels may be any that folders have, such as those that end with a space.
    """
    if form.get("kind") == NO_LABEL:
        return None
    label = form.get("new_label", "").strip() or form.get("label", "")
    if label not in existing and (problem := label_problem(label)):
        raise InvalidInput(f"label is {label[:80]!r}: {problem}")
    return label


@dataclass(frozen=True)
class Gallery:
    """Everything the pages of one home need."""

    delta_tables: DeltaTables
    image_folder: ImageFolder  # its subfolders give labels
    index: LiveIndex
    thumbnails: Thumbnails
    embeddings: LiveEmbeddings
    explanations: Explanations
    links: Mapping[str, str]  # the URLs of other UIs, by name


def gallery_of(settings: Settings) -> Gallery:
    """The gallery of the home in the settings."""
    resources = create_resources(settings)
    delta_tables = cast(DeltaTables, resources["delta_tables"])
    registry = cast(ModelRegistry, resources["model_registry"])
    image_folder = cast(ImageFolder, resources["image_folder"])
    pictures = FolderCache(settings.home / "gallery")
    return Gallery(
        delta_tables=delta_tables,
        image_folder=image_folder,
        index=LiveIndex(delta_tables, registry, merge_labels=image_folder.merge_labels),
        thumbnails=Thumbnails(delta_tables, pictures),
        embeddings=LiveEmbeddings(delta_tables),
        explanations=Explanations(delta_tables, registry, pictures),
        links={"Dagster": settings.dagster_url, "MLflow": settings.mlflow_url},
    )


def build_app(gallery: Gallery) -> Starlette:
    """The web application of a gallery."""
    handlers = Handlers(gallery)
    return Starlette(
        routes=[
            Route("/", handlers.images),
            Route("/image", handlers.image),
            Route("/corrections", handlers.correct, methods=["POST"]),
            Route("/images/{image_id}/{size}", handlers.picture),
            Route("/explanations/{image_id}/{version:int}", handlers.explanation),
            Route("/health", lambda _: PlainTextResponse("ok")),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ],
        middleware=protection(HEADERS),
        exception_handlers=dict.fromkeys((HTTPException, *STATUS_CODES), handlers.error),
    )


class Handlers:
    """The request handlers. Starlette runs those that are not async in a thread each."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._templates = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,  # file names and labels can contain anything, HTML included
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(TEMPLATE_FILTERS)
        self._templates.globals["links"] = gallery.links

    def images(self, request: Request) -> Response:
        """A page of images. Redirects to the shortest URL, because forms send their empty fields too."""
        filters = Filters.read(request.query_params)
        query = filters.url(page=filters.page).removeprefix("?")
        if query != request.url.query:
            return RedirectResponse(f"/?{query}", 303)
        return self._page("images.html", images_page(self._gallery.index.current(), filters))

    def image(self, request: Request) -> Response:
        """The page of one image."""
        parameters, gallery = request.query_params, self._gallery
        values = image_page(gallery.index.current(), gallery.delta_tables, gallery.embeddings, parameters)
        if values is None:
            raise no_such_file(parameters)
        form = {
            "query": request.url.query,
            "person": unquote(request.cookies.get(NAME_COOKIE, "")) or os.environ.get("USER", ""),
        }
        return self._page("image.html", values | form)

    async def correct(self, request: Request) -> Response:
        """Stores a label correction and redirects to the image's page."""
        if int(request.headers.get("content-length") or MAX_FORM_BYTES + 1) > MAX_FORM_BYTES:
            raise HTTPException(413, f"The form is too large: expected at most {MAX_FORM_BYTES:,} bytes.")
        form = dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True))
        await run_in_threadpool(self._correct, request.query_params, form)
        response = RedirectResponse(f"/image?{request.url.query}", 303)
        name = quote(form["corrected_by"])
        response.set_cookie(NAME_COOKIE, name, max_age=YEAR_SECONDS, httponly=True, samesite="strict")
        return response

    def _correct(self, parameters: Mapping[str, str], form: Mapping[str, str]) -> None:
        gallery, index = self._gallery, self._gallery.index.current()
        image = read_image(index, parameters.get("path", ""))
        if image is None:
            raise no_such_file(parameters)
        layout = read_layout(gallery.delta_tables, gallery.image_folder)
        append_corrections(gallery.delta_tables, to_corrections(index, image, form, layout))
        gallery.index.refresh_corrections()

    def picture(self, request: Request) -> Response:
        """A thumbnail, by image_id. Files that could not be decoded on import are never decoded here."""
        image_id, size = request.path_params["image_id"], request.path_params["size"]
        tag = f'"{image_id}-{size}"'
        rows = self._gallery.index.current().rows(CONTENT, [image_id])
        if size not in SIDE_PIXELS or not rows:
            raise HTTPException(404, "There is no such picture.")
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304)
        try:
            picture = self._gallery.thumbnails.picture(Content(**rows[0]), cast(Size, size))
        except PictureUnavailable:
            return Response(placeholder(), 404, {"Cache-Control": "no-store"}, "image/png")
        return Response(picture, 200, {"Cache-Control": IMMUTABLE, "ETag": tag}, "image/jpeg")

    async def explanation(self, request: Request) -> Response:
        """A picture of what a version's prediction depends on, or one of the reason why there is none.

        It takes a fraction of a second, or seconds if the version is not loaded yet, and no thread of the server waits.
        """
        question = await run_in_threadpool(self._question, request)
        try:
            picture = await asyncio.wrap_future(self._gallery.explanations.picture(question))
        except NotExplained as error:
            return Response(message_picture(str(error)), 404, {"Cache-Control": "no-store"}, "image/png")
        return Response(picture, 200, {"Cache-Control": "private, max-age=600"}, "image/jpeg")

    def _question(self, request: Request) -> Question:
        index, labels = self._gallery.index.current(), tuple(request.query_params.getlist("label"))
        version = index.models.get(request.path_params["version"])
        rows = index.rows(CONTENT, [request.path_params["image_id"]])
        if not rows or version is None or not labels or not set(labels) <= set(version.labels):
            raise HTTPException(404, "There is no such image, or the registry has no such version with these labels.")
        return Question(Content(**rows[0]), version, labels)

    def error(self, _: Request, error: Exception) -> Response:
        """The page that explains why a request was rejected."""
        if isinstance(error, HTTPException):
            status, message = error.status_code, error.detail
            if message == HTTPStatus(status).phrase:  # Starlette's own words: it has no route to this address
                message = "There is no page at this address."
        else:
            status, message = STATUS_CODES[type(error)], str(error)
        return self._page("error.html", {"message": message, "status": status}, status)

    def _page(self, template: str, values: Mapping[str, Any], status: int = 200) -> Response:
        html = self._templates.get_template(template).render(values)
        return HTMLResponse(html, status, {"Cache-Control": "no-store"})


def no_such_file(parameters: Mapping[str, str]) -> HTTPException:
    """The error for a path that the ledger does not have."""
    return HTTPException(404, f"image_files has no file with the path {parameters.get('path', '')[:500]!r}")
