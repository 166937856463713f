"""Labels, as folders tell them (runs in each executor)."""


def to_label(path: str, landing: str) -> str | None:
    """The first sub-folder below the landing folder; None for a file directly in it or outside of it."""
    below = path.removeprefix(f"{landing}/")
    if below == path or "/" not in below:
        return None
    return below.partition("/")[0].replace("%25", "%")  # as the folder is called
