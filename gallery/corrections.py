"""A person's word on what an image is: read from a form, kept in label_corrections."""

from collections.abc import Mapping

from gallery.index import Index
from gallery.queries import Row, WrongFilter
from image_assets.data.label_corrections import Correction, record, why_no_label
from image_assets.data.labels import to_label
from resources.delta.thin_tables import ThinTables

MOST_LETTERS = {"corrected_by": 100, "comment": 1000}
NO_LABEL = "none"  # what the form's field `kind` says of an image that is none of the labels
FOLDER = "folder"  # and of one whose label is its folder's again


class StaleImage(ValueError):
    """A form about bytes that the file no longer has."""


def to_corrections(index: Index, image: Row, said: Mapping[str, str], landing: str) -> list[Correction]:
    """What a form says of an image, for each current file with the same bytes; a ValueError says what is wrong."""
    if said.get("image_id") != image["image_id"] or not image["width"]:
        raise StaleImage("the file has other bytes than when its page was opened: look at the image again")
    texts = {name: said.get(name, "").strip() for name in MOST_LETTERS}
    for name, most in MOST_LETTERS.items():
        if len(texts[name]) > most:
            raise WrongFilter(f"{name} has {len(texts[name])} letters: expected at most {most}")
    if not texts["corrected_by"]:
        raise WrongFilter("corrected_by is empty: expected who corrects the label")
    same = "SELECT path, label FROM images WHERE image_id = ? AND (state = 'current' OR path = ?)"
    return [
        Correction(
            path=file["path"],
            image_id=image["image_id"],
            label=to_label(file["path"], landing) if said.get("kind") == FOLDER else label_said(said),
            former_label=file["label"],
            withdrawn=said.get("kind") == FOLDER,
            corrected_by=texts["corrected_by"],
            comment=texts["comment"] or None,
        )
        for file in index.rows(same, [image["image_id"], image["path"]])
    ]


def label_said(said: Mapping[str, str]) -> str | None:
    """The label that a form names: a new one before one that is there; None for none."""
    if said.get("kind") == NO_LABEL:
        return None
    label = said.get("new_label", "").strip() or said.get("label", "")
    if why := why_no_label(label):
        raise WrongFilter(f"label is {label[:80]!r}: {why}")
    return label


def keep(thin_tables: ThinTables, corrections: list[Correction]) -> None:
    """Keep those that change something."""
    if changes := [one for one in corrections if one.withdrawn or one.label != one.former_label]:
        record(thin_tables, changes)
