"""Where the weights of backbones come from: a folder, an installed package, or a download."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from image_assets.models.backbones import BACKBONES, Backbone
from image_assets.models.external_backbones import missing_package
from image_assets.models.frameworks import FRAMEWORKS
from resources.weight_files import SOURCES

DOWNLOAD_TIMEOUT_SECONDS = 10
logger = logging.getLogger(__name__)


def require_packages(backbone: Backbone, framework: str) -> None:
    """Raise an ImportError that says how to install the optional packages that the backbone needs."""
    own = backbone.implementations[framework]
    if lacking := [package.name for package in own.packages if not find_spec(package.module)]:
        raise ImportError(missing_package(backbone.name, lacking))


def has_weights_at_hand(backbone: Backbone, framework: str, source: str) -> bool:
    """Whether the backbone can be trained here and now, without a download.

    Args:
        backbone: The backbone.
        framework: The framework's name.
        source: Where weights come from: one of SOURCES, or a folder.
    """
    own = backbone.implementations.get(framework)
    if own is None or not all(find_spec(package.module) for package in own.packages):
        return False
    if source == "none" or own.packaged_weights or not own.weight_files:
        return True
    folder = FRAMEWORKS[framework].downloads() if source in SOURCES else Path(source)
    return any((folder / name).is_file() for name in own.weight_files)


def backbones_at_hand(framework: str, source: str) -> list[str]:
    """The names of the backbones that can be trained here and now, without a download."""
    return [name for name, backbone in BACKBONES.items() if has_weights_at_hand(backbone, framework, source)]


def how_to_get_weights(backbone: Backbone, framework: str, source: str) -> str:
    """What to do if the weights of a backbone cannot be fetched, and which backbones need nothing."""
    own = backbone.implementations[framework]
    usable = backbones_at_hand(framework, source)
    return (
        f"To get the weights of {backbone.name} for {FRAMEWORKS[framework].title}, download {own.url or 'them'} on a "
        f"machine with access to it, store the file as {own.weight_files[0]} in a folder, and name the folder in "
        f"IMAGE_ASSETS_BACKBONE. Backbones whose weights are at hand: {', '.join(usable) or 'none'}."
    )


def go_on_untrained(backbone: Backbone, framework: str, source: str, error: Exception) -> None:
    """Warn that a backbone stays untrained, because its download failed with this error.

    Raises:
        FileNotFoundError: The source is "imagenet", which asks for trained weights.
    """
    advice = how_to_get_weights(backbone, framework, source)
    if source == "imagenet":
        raise FileNotFoundError(f"no ImageNet weights for {backbone.name}: {error}. {advice}") from error
    logger.warning(
        "%s: no ImageNet weights (%s): the backbone is untrained, expect poor accuracy. %s", framework, error, advice
    )


@contextmanager
def download_timeout() -> Iterator[None]:
    """Let connections fail that stay silent for DOWNLOAD_TIMEOUT_SECONDS."""
    # Neither framework's download sets a timeout, and neither lets its caller set one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
