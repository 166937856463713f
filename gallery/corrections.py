"""The form that corrects an image's label."""

from collections.abc import Mapping

from gallery.index import Index
from gallery.queries import InvalidInput, Row
from image_assets.data.label_corrections import Correction, append_corrections, label_problem
from image_assets.data.labels import to_label
from resources.delta.delta_tables import DeltaTables

MAX_LENGTHS = {"corrected_by": 100, "comment": 1000}
NO_LABEL = "none"  # the field `kind` of an image that belongs to none of the labels
UNDO = "folder"  # the field `kind` of an image whose folder's label applies again


class StaleImage(ValueError):
    """A form about a file whose content has changed since the form was opened."""


def to_corrections(index: Index, image: Row, form: Mapping[str, str], landing: str) -> list[Correction]:
    """The corrections that a form asks for: one for each current file with the image's bytes.

    Args:
        index: The index.
        image: The image of the form's page.
        form: The fields `image_id`, `kind`, `label`, `new_label`, `corrected_by` and `comment`.
        landing: The landing folder, whose subfolders are the labels.

    Raises:
        StaleImage: The file has other bytes than when the form was opened.
        InvalidInput: A field has a value that is not allowed.
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
    copies = "SELECT path, label FROM images WHERE image_id = ? AND (state = 'current' OR path = ?)"
    return [
        Correction(
            path=file["path"],
            image_id=image["image_id"],
            label=to_label(file["path"], landing) if undo else chosen_label(form),
            former_label=file["label"],
            withdrawn=undo,
            corrected_by=texts["corrected_by"],
            comment=texts["comment"] or None,
        )
        for file in index.rows(copies, [image["image_id"], image["path"]])
    ]


def chosen_label(form: Mapping[str, str]) -> str | None:
    """The label that a form sets: a new label takes precedence over a selected one. None for no label."""
    if form.get("kind") == NO_LABEL:
        return None
    label = form.get("new_label", "").strip() or form.get("label", "")
    if problem := label_problem(label):
        raise InvalidInput(f"label is {label[:80]!r}: {problem}")
    return label


def save(delta_tables: DeltaTables, corrections: list[Correction]) -> None:
    """Store the corrections that change something."""
    if changes := [one for one in corrections if one.withdrawn or one.label != one.former_label]:
        append_corrections(delta_tables, changes)
