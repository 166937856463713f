"""Embeddings without a framework: a network that averages colors, and rows of featured_images to embed."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from image_assets.images.pixels import DEFAULT
from image_assets.models.embedding_networks import EmbeddingNetwork
from image_assets.models.embeddings import to_stored
from image_assets.schemas import FEATURED_IMAGES, IMAGE_EMBEDDINGS
from resources.delta.delta_tables import DeltaTables
from resources.delta.parquet_files import write_files
from resources.delta.table import Table, file_layout

SIDE = 16
BACKBONE = "colors-numpy-0"


def color_network(folder: Path, backbone: str = BACKBONE) -> EmbeddingNetwork:
    """A network whose embeddings are the mean of each color."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    axes = numpy_helper.from_array(np.array([1, 2]), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["embedding"], keepdims=0),
        ],
        "colors",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 3])],
        [axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    file = folder / "colors.onnx"
    onnx.save(model, str(file))
    return EmbeddingNetwork(backbone, str(file), SIDE, "rgb", DEFAULT)


def add_rows(delta_tables: DeltaTables, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Appends rows to a table; missing columns become null."""
    delta_tables.create(table)
    whole = [{**dict.fromkeys(table.columns.fieldNames()), **row} for row in rows]
    delta_tables.append_files(table, list(write_files(whole, delta_tables.uri(table), file_layout(table))))


def feature(delta_tables: DeltaTables, images: dict[str, bytes]) -> None:
    """Adds images to featured_images: their content by path."""
    add_rows(
        delta_tables,
        FEATURED_IMAGES,
        [
            {"path": path, "image_id": sha256(content).hexdigest(), "length": len(content), "content": content}
            for path, content in images.items()
        ],
    )


def embed(delta_tables: DeltaTables, backbone: str, embeddings: dict[str, Sequence[float]]) -> None:
    """Adds embeddings to image_embeddings, by image_id."""
    add_rows(
        delta_tables,
        IMAGE_EMBEDDINGS,
        [
            {"path": f"file:/{name}", "image_id": name, "backbone": backbone, "embedding": to_stored(np.array(values))}
            for name, values in embeddings.items()
        ],
    )
