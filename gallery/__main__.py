"""Serves the gallery on this machine; `make dev` starts it next to Dagster and MLflow."""

import argparse
import logging

import uvicorn

from gallery.server import build_app, gallery_of
from resources.delta.delta_log import BrokenTable, LostTable
from resources.home import require_usable, use_until_exit
from resources.processes.child_process import end_with_parent
from resources.settings import read_settings

HOST = "127.0.0.1"


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m gallery", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the port to listen on")
    # For containers, whose published port is bound to the machine's own address. Other host names are rejected anyway.
    parser.add_argument("--host", default=HOST, help=f"the address to listen on (default: {HOST})")
    parser.add_argument("--parent", type=int, help="the process that started it: the server ends with it")
    arguments = parser.parse_args()
    if arguments.parent:
        end_with_parent(arguments.parent)
    settings = read_settings()
    require_usable(settings.home)
    use_until_exit(settings.home)
    gallery = gallery_of(settings)
    try:
        gallery.index.refresh()
    except (LostTable, BrokenTable) as error:  # its pages say the same, and try again
        logging.getLogger(__name__).warning("The gallery cannot show images yet: %s", error)
    uvicorn.run(build_app(gallery), host=arguments.host, port=arguments.port, log_level="warning", server_header=False)


if __name__ == "__main__":
    main()
