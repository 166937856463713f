"""What is in a landing folder."""

from resources.files.file_system import ImageFile
from resources.files.image_folder import ImageFolder


def list_files(folder: ImageFolder) -> list[ImageFile]:
    """Return the current state of every image file in the folder."""
    listing = folder.list_names()
    return [file for path in listing.names if (file := listing.stat_file(path))]
