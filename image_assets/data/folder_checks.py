"""Checks of what folders give: plausible labels, one spelling for each, and splits without leaks."""

import dagster as dg
import pyarrow.compute as pc

from image_assets.data.data_checks import leaks_result
from image_assets.data.folder_layout import advice, one_path_per_folder, read_layout, same_but_for_spelling
from image_assets.data.given_labels import FOLDER
from image_assets.data.image_files import IMAGE_KEYS, current_key_batches
from image_assets.data.sound_splits import LISTED_PROBLEMS, current_assignments, given_and_other_leaks
from image_assets.schemas import FEATURED_IMAGES, GIVEN_LABELS, IMAGE_FILES, IMAGE_SPLITS
from resources.delta.delta_tables import DeltaTables
from resources.delta.queries import query
from resources.delta.unchanged import table_check
from resources.files.image_folder import ImageFolder

SPELLINGS_REMEDY = "rename the folders, or set IMAGE_ASSETS_MERGE_LABELS=on to use such labels as one, in lower case"
GIVEN_LEAKS_REMEDY = (
    "delete the listed files from all folders but one; until then, the metrics of the given splits flatter the model"
)


@dg.asset_check(
    asset="image_files",
    description="Folders give plausible labels: more than one, and not years, dates or splits. If it fails: follow the "
    "suggestion in the message, and launch the job `whole_path`.",
)
def folders_give_labels(delta_tables: DeltaTables, image_folder: ImageFolder) -> dg.AssetCheckResult:
    """Labels that look like something else, and how folders are read; a label table makes folder names irrelevant."""
    layout = read_layout(delta_tables, image_folder)
    paths = one_path_per_folder(delta_tables)
    has_label_table = delta_tables.read(GIVEN_LABELS, ["path"], pc.field("state") != FOLDER).num_rows > 0
    found = [] if has_label_table else advice(paths, layout)
    return dg.AssetCheckResult(
        passed=not found,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"layout": str(layout), "splits_from_training": ", ".join(layout.missing_splits) or "none"},
        description="; ".join(found) or str(layout),
    )


@table_check(
    asset="featured_images",
    reads=[FEATURED_IMAGES, IMAGE_FILES],
    description=f"No labels differ in case, spaces around them or Unicode form only. If it fails: {SPELLINGS_REMEDY}.",
)
def labels_spelled_alike(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """Labels of current images that look the same."""
    found_labels = query(
        "SELECT label, count(*) AS images FROM labeled JOIN current USING (path, image_id) GROUP BY label",
        labeled=delta_tables.batches(FEATURED_IMAGES, [*IMAGE_KEYS, "label"], pc.field("label").is_valid()),
        current=current_key_batches(delta_tables),
    )
    counts = dict(zip(found_labels["label"].to_pylist(), found_labels["images"].to_pylist(), strict=True))
    groups = same_but_for_spelling(counts)
    # Escaped as in Python, so that Unicode forms and spaces can be told from each other.
    found = [" and ".join(f"{ascii(label)} ({counts[label]:,} images)" for label in group) for group in groups]
    return dg.AssetCheckResult(
        passed=not groups,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"groups": len(groups)},
        description=f"{'; '.join(found[:LISTED_PROBLEMS])}: {SPELLINGS_REMEDY}" if groups else None,
    )


@table_check(
    asset="image_splits",
    reads=[IMAGE_SPLITS, FEATURED_IMAGES, IMAGE_FILES],
    description="No image is in two of the splits that folders give, not even as a near duplicate or mirrored. If it "
    f"fails: {GIVEN_LEAKS_REMEDY}.",
)
def given_splits_apart(delta_tables: DeltaTables) -> dg.AssetCheckResult:
    """The groups of near duplicates in several folders that name splits; no image is moved."""
    is_given = delta_tables.read(IMAGE_SPLITS, ["given_split"], pc.field("given_split").is_valid()).num_rows > 0
    found = given_and_other_leaks(delta_tables, current_assignments(delta_tables))[0] if is_given else []
    return leaks_result(found, GIVEN_LEAKS_REMEDY, dg.AssetCheckSeverity.WARN)
