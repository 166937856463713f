"""What `make dev` starts beside Dagster and MLflow: the gallery, for this machine only."""

import argparse
from pathlib import Path
from typing import cast

import uvicorn

from gallery.live_index import LiveIndex
from gallery.neighbours import KeptEmbeddings
from gallery.server import Gallery, build_app
from gallery.thumbnails import KeptFolder, Thumbnails
from resources.environments import Settings, read_settings
from resources.graph_resources import local
from resources.image_folder import ImageFolder
from resources.model_registry import ModelRegistry
from resources.thin_tables import ThinTables

HOST = "127.0.0.1"


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
        embeddings=KeptEmbeddings(Path(settings.home / "caches")),
        links={"Dagster": settings.dagster_url, "MLflow": settings.mlflow_url},
    )


def main() -> None:
    """Serve until asked to end."""
    parser = argparse.ArgumentParser(prog="python -m gallery", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    gallery = gallery_of(read_settings())
    gallery.index.refresh()
    uvicorn.run(build_app(gallery), host=HOST, port=parser.parse_args().port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
