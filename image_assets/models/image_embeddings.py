"""Embeddings of all images, by the frozen default backbone."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pyarrow.compute as pc

from image_assets.data.image_files import IMAGE_KEYS
from image_assets.images.pixels import Reading
from image_assets.models.backbones import CURRENT_BACKBONE, Backbone
from image_assets.models.embedding_networks import EmbeddingNetwork, Export, embedding_networks
from image_assets.models.embeddings import StoredEmbeddings, to_stored
from image_assets.models.stored_embeddings import embedding_files
from image_assets.models.training import weights_identity
from image_assets.schemas import FEATURED_IMAGES, IMAGE_EMBEDDINGS, PREDICTED_FIRST
from resources.delta.arrow_rows import Row
from resources.delta.delta_tables import DeltaTables
from resources.delta.following import follow
from resources.delta.new_rows import Key, NewRows
from resources.delta.parquet_files import WrittenFile, write_files
from resources.delta.petastorm_caches import PetastormCaches
from resources.delta.table import Change, file_layout
from resources.delta.writing import write_by_tasks
from resources.training import BackboneWeights

READ_COLUMNS = ("path", "image_id", "length", "content")
BACKBONES, FAULT = "backbones", "_fault"  # in the metadata: those that embed images, and why a framework's does not


def current_networks(
    caches: PetastormCaches, weights: BackboneWeights, backbone: Backbone = CURRENT_BACKBONE
) -> tuple[list[EmbeddingNetwork], dict[str, str]]:
    """The networks of the backbone that trainings use by default; why a framework has none, unless it is untrained."""
    exports, faults = [], {}
    for framework in backbone.implementations:
        try:
            identity = weights_identity(backbone, framework, weights)
        except FileNotFoundError as error:
            faults[framework] = str(error)
        else:
            exports.append(Export(backbone.exporter(framework), backbone.name, weights.source, identity))
    exports, reading = [*dict.fromkeys(exports)], Reading(caches.page, caches.pixel_limit)
    networks, more = embedding_networks(caches.root, exports, caches.color, reading, dg.get_dagster_logger().info)
    failed = {of: more[backbone.exporter(of)] for of in backbone.implementations if backbone.exporter(of) in more}
    return networks, faults | failed


def follow_featured_images(delta_tables: DeltaTables, network: EmbeddingNetwork) -> Change:
    """Appends embeddings of the rows that featured_images got since the last run, each content computed once."""

    def embedded_files(new: NewRows) -> list[WrittenFile]:
        rows = new.read(IMAGE_KEYS).to_pylist()
        path_of = {row["image_id"]: row["path"] for row in rows}  # any of them
        stored = stored_ids(delta_tables, network.backbone, path_of.keys())
        computed = frozenset((path, image_id) for image_id, path in path_of.items() if image_id not in stored)
        files = computed_files(delta_tables, network, new, computed) if computed else []
        if copied := [row for row in rows if (row["path"], row["image_id"]) not in computed]:
            files += copied_files(delta_tables, network.backbone, copied, files)
        return files

    return follow(
        delta_tables, FEATURED_IMAGES, IMAGE_EMBEDDINGS, by=embedded_files, part={"backbone": network.backbone}
    )


def stored_ids(delta_tables: DeltaTables, backbone: str, image_ids: Iterable[str]) -> set[str]:
    """Which of the images have an embedding."""
    where = (pc.field("backbone") == backbone) & pc.field("image_id").isin([*image_ids])
    rows = delta_tables.read(IMAGE_EMBEDDINGS, ["image_id"], where & pc.field("embedding").is_valid())
    return set(rows["image_id"].to_pylist())


def computed_files(
    delta_tables: DeltaTables, network: EmbeddingNetwork, new: NewRows, keys: frozenset[Key]
) -> list[WrittenFile]:
    """Writes computed embeddings of the images with these keys."""
    share = len(keys) / max(new.count, len(keys))
    wanted = replace(new, wanted=keys, count=len(keys), size_bytes=round(new.size_bytes * share))
    # Locally in one task: the network itself computes on all cores.
    written = write_by_tasks(
        delta_tables,
        wanted,
        READ_COLUMNS,
        IMAGE_EMBEDDINGS,
        by=network.rows,
        doing=f"embedded ({network.backbone.rpartition('-')[0]})",
        task_bytes=new.all_bytes + 1,
    )
    return written.files


def copied_files(
    delta_tables: DeltaTables, backbone: str, rows: Sequence[Row], computed: Sequence[WrittenFile]
) -> list[WrittenFile]:
    """Writes rows for images whose content the table or the computed files have under another path.

    The embedding is null if the image could not be read there.
    """
    folder = delta_tables.uri(IMAGE_EMBEDDINGS)
    root = folder if "://" in folder else Path(folder).absolute().as_uri()
    known = (*(f"{root}/{file.name}" for file in computed), *embedding_files(delta_tables))
    of_image = {
        image_id: to_stored(embedding)
        for image_ids, embeddings in StoredEmbeddings(known, backbone).read({row["image_id"] for row in rows})
        for image_id, embedding in zip(image_ids, embeddings, strict=True)
    }
    copies = ({**row, "backbone": backbone, "embedding": of_image.get(row["image_id"])} for row in rows)
    return list(write_files(copies, folder, file_layout(IMAGE_EMBEDDINGS)))


@dg.asset(deps=["featured_images"], kinds={"deltalake", "onnx"}, pool="image_embeddings", op_tags=PREDICTED_FIRST)
def image_embeddings(
    context: dg.AssetExecutionContext,
    delta_tables: DeltaTables,
    petastorm_caches: PetastormCaches,
    backbone: BackboneWeights,
) -> dg.MaterializeResult:
    """Embeddings of all images, labeled or not: the output of the pretrained default backbone.

    Training, predictions, drift and the gallery read them. An untrained backbone has none.
    """
    before = delta_tables.snapshot(IMAGE_EMBEDDINGS)
    networks, faults = current_networks(petastorm_caches, backbone)
    for framework, fault in faults.items():
        context.log.warning(
            f"{framework} computed no embeddings, because its backbone could not be exported: {fault}. Training and "
            "predictions compute them in memory; the next run tries again"
        )
    for network in networks:
        follow_featured_images(delta_tables, network)
    return delta_tables.materialized(
        IMAGE_EMBEDDINGS,
        delta_tables.change_since(before, IMAGE_EMBEDDINGS),
        **{BACKBONES: ", ".join(network.backbone for network in networks) or "none: the weights are untrained"},
        **{f"{framework}{FAULT}": fault for framework, fault in faults.items()},
    )
