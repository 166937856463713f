"""The labels that count in place of folders': people's corrections, and before there is one the label table's."""

from collections.abc import Mapping
from dataclasses import dataclass

from image_assets.data.label_corrections import Image, newest_corrections
from image_assets.schemas import GIVEN_LABELS
from resources.thin_tables import ThinTables


@dataclass(frozen=True)
class SaidLabels:
    """What is said of images by people, and of files by the label table; None: they have no label."""

    corrected: Mapping[Image, str | None]
    given: Mapping[str, str | None]

    def __bool__(self) -> bool:
        return bool(self.corrected or self.given)

    def of(self, image: Image, otherwise: str | None) -> str | None:
        """The label of an image (path, image_id); `otherwise` where nobody says one."""
        return self.corrected[image] if image in self.corrected else self.given.get(image[0], otherwise)


def given_by_path(thin_tables: ThinTables) -> dict[str, str | None]:
    """What given_labels says of each file; nothing of any where there never was a label table."""
    rows = thin_tables.read(GIVEN_LABELS, ["path", "label"])
    return dict(zip(rows["path"].to_pylist(), rows["label"].to_pylist(), strict=True))


def said_labels(thin_tables: ThinTables) -> SaidLabels:
    """All that is said now. A correction that was taken back is its folder's label, unless a table gives one."""
    given = given_by_path(thin_tables)
    corrected = {
        (row["path"], row["image_id"]): row["label"]
        for row in newest_corrections(thin_tables)
        if not (row["withdrawn"] and row["path"] in given)
    }
    return SaidLabels(corrected, given)
