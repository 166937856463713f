"""What `make dev` starts beside Dagster and MLflow: the gallery, for this machine only."""

import argparse

import uvicorn

from gallery.server import build_app, gallery_of
from resources.settings import read_settings

HOST = "127.0.0.1"


def main() -> None:
    """Serve until asked to end."""
    parser = argparse.ArgumentParser(prog="python -m gallery", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    gallery = gallery_of(read_settings())
    gallery.index.refresh()
    uvicorn.run(build_app(gallery), host=HOST, port=parser.parse_args().port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
