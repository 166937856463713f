"""Serves the gallery on this machine; `make dev` starts it next to Dagster and MLflow."""

import argparse

import uvicorn

from gallery.server import build_app, gallery_of
from resources.settings import read_settings

HOST = "127.0.0.1"


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m gallery", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the port to listen on")
    port = parser.parse_args().port
    gallery = gallery_of(read_settings())
    gallery.index.refresh()
    uvicorn.run(build_app(gallery), host=HOST, port=port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
