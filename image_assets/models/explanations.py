"""Explanations of predictions: photographs with the parts in red on which a model version's prediction depends."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pandas as pd
from PIL import Image

from image_assets.images.contact_sheets import THUMBNAIL_PIXELS, contact_sheet, to_thumbnail
from image_assets.images.formats import UnreadableImage
from image_assets.images.isolated_process import ItemFailure
from image_assets.images.pixels import to_pixels
from image_assets.models.isolated_scoring import LoadableVersion, VersionNotLoaded, predicting
from image_assets.models.lineage import image_side, reading_of
from image_assets.models.occlusion import to_heat, with_covers
from image_assets.models.scoring import SUM_TOLERANCE
from resources.mlflow.model_registry import FILES_DIGEST, ModelRegistry, ModelVersion

DEVICE = "cpu"  # an image takes a fraction of a second, for which no GPU has to be free
HOT = "#ff3000"
STRONGEST = 0.8  # opacity of the color where the heat is greatest
EXPLAINED_MISTAKES = 6  # of model_evaluations, which has to finish soon
TILES_PER_MISTAKE = 3
Explain = Callable[[bytes, Sequence[str]], "list[Explanation]"]


class NotExplained(ValueError):
    """Why there is no explanation, for a person to read."""


@dataclass(frozen=True)
class Explanation:
    """How the probability of a label depends on the parts of an image."""

    label: str
    probability: float
    lowest: float  # with the most important part covered
    heat: np.ndarray  # (SQUARES, SQUARES): how much the probability falls when that square is covered

    @property
    def caption(self) -> str:
        """The label, its probability, and that with the most important part covered."""
        return f"{self.label} {self.probability:.0%}\n{self.lowest:.0%} without the reddest part"


@contextmanager
def explaining(version: ModelVersion, registry: ModelRegistry) -> Iterator[Explain]:
    """Explains labels of images, by content, with a version of any kind in a guarded process.

    Call `require_files_as_logged` before. `Explain` raises NotExplained with the reason if it cannot explain an image.
    """
    digest = version.tags.get(FILES_DIGEST, "")
    with predicting(LoadableVersion(registry.tracking_uri, version.uri, DEVICE, digest)) as predict:

        def explain(content: bytes, labels: Sequence[str]) -> list[Explanation]:
            try:
                side_pixels = image_side(version)
            except (ValueError, OSError, ImportError) as error:
                raise NotExplained(f"the size of version {version.version}'s images is unknown: {error}") from error
            try:
                images = with_covers(to_pixels(content, side_pixels, reading=reading_of(version)))
                answers = predict(pd.DataFrame({"content": [_to_png(one) for one in images], "path": None}))
            except (UnreadableImage, VersionNotLoaded) as error:
                raise NotExplained(str(error)) from error
            return to_explanations(answers, labels, version)

        yield explain


def to_explanations(
    answers: pd.DataFrame | ItemFailure, labels: Sequence[str], version: ModelVersion
) -> list[Explanation]:
    """An explanation for each of the labels, from the version's answers for the images of `with_covers`."""
    if isinstance(answers, ItemFailure):
        raise NotExplained(f"version {version.version} failed: {answers.reason}: {answers.message}")
    if unknown := [label for label in labels if label not in version.labels]:
        raise NotExplained(f"version {version.version} does not know {', '.join(unknown)}, only {version.labels}")
    rows = [[] if row is None else row for row in answers["probabilities"]]
    if any(len(row) != len(version.labels) or not math.isclose(sum(row), 1, abs_tol=SUM_TOLERANCE) for row in rows):
        raise NotExplained(
            f"version {version.version} gives no valid probabilities when a part of the image is covered: expected one "
            "for each label"
        )
    probabilities = np.array(rows, np.float64)
    columns = [(label, probabilities[:, version.labels.index(label)]) for label in labels]
    return [Explanation(label, float(of[0]), float(of.min()), to_heat(of)) for label, of in columns]


def with_heat(photograph: bytes, heat: np.ndarray) -> bytes:
    """The photograph in gray with a heat map in red over it, as JPEG: strongest where the heat is greatest.

    Args:
        photograph: Any image that Pillow reads, such as a thumbnail.
        heat: Of any shape (rows, columns), not negative.
    """
    image = Image.open(BytesIO(photograph))
    strength = STRONGEST * 255 * heat / (heat.max() or 1.0)
    mask = Image.fromarray(strength.astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    explained = Image.composite(Image.new("RGB", image.size, HOT), image.convert("L").convert("RGB"), mask)
    file = BytesIO()
    explained.save(file, "JPEG", quality=90)
    return file.getvalue()


def labels_to_explain(predicted: str | None, label: str | None, version: ModelVersion) -> list[str]:
    """The predicted label and, if it is another one, the image's own, as far as the version knows them."""
    return [one for one in dict.fromkeys([predicted, label]) if one is not None and one in version.labels]


def explained_tiles(content: bytes, explanations: Sequence[Explanation]) -> list[tuple[bytes, str]]:
    """A tile of a contact sheet for each explanation of an image."""
    photograph = to_thumbnail(content, THUMBNAIL_PIXELS)
    return [(with_heat(photograph, one.heat), one.caption) for one in explanations]


def explanations_sheet(version: ModelVersion, mistakes: pd.DataFrame, registry: ModelRegistry) -> bytes:
    """A contact sheet of the first mistakes: each photograph, and what speaks for the predicted and the true label.

    Args:
        version: The version that made the mistakes; its files are those that were logged.
        mistakes: Wrong predictions with `content`, `label` and `true_label`.
        registry: Where the version is.
    """
    tiles = []
    with explaining(version, registry) as explain:
        for mistake in mistakes.head(EXPLAINED_MISTAKES).to_dict("records"):
            content, label, true_label = (mistake[name] for name in ("content", "label", "true_label"))
            labels = labels_to_explain(label, true_label, version)
            tiles.append(
                (content, f"predicted {label}, is {true_label}" if label else f"no prediction, is {true_label}")
            )
            try:
                explained = explained_tiles(content, explain(content, labels))
            except NotExplained as error:
                explained = [(b"", f"not explained: {error}")]
            tiles += [*explained, *[(BLANK, "")] * (TILES_PER_MISTAKE - 1 - len(explained))]
    return contact_sheet(tiles, side_pixels=140, columns=2 * TILES_PER_MISTAKE)


def _to_png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


BLANK = _to_png(np.full((1, 1, 3), 255, np.uint8))
