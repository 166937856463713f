"""The whole look at an image, which decodes it (runs in each executor)."""

import os

import imagehash  # noqa: F401 - loaded once here, not again by each guarded process, within its memory bound
import scipy.fftpack  # noqa: F401 - what imagehash loads when it first hashes

from image_assets.guarded_process import Failure
from image_assets.pixels import Features, UnreadableImage, to_features, to_file_features
from resources.arrow_rows import Row
from resources.file_system import FileChanged, opened


def decoded(image: Row) -> Features | Failure:
    """The whole look at a row's content or, where it has none, at the file of its path; to be run guarded."""
    try:
        if image["content"] is not None:
            return to_features(image["content"])
        with opened(image["path"]) as file:
            found = file.seek(0, os.SEEK_END)
            if found != image["length"]:
                raise FileChanged(f"the file has {found:,} bytes, its row {image['length']:,}")
            return to_file_features(file)
    except UnreadableImage as unreadable:
        return Failure(unreadable.reason, str(unreadable))
    except OSError as error:
        return Failure("unreadable_file", f"{error}: expected the file as it was listed; copy it again")
