"""The edge model and its example predict what the version itself predicts, tested with a tiny network."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from image_assets.images.pixels import to_pixels
from image_assets.jobs.package_model import TEMPLATES, write_edge_model
from tests.support.images import picture

PATCHES = [f"patch {number}" for number in range(48)]
# Predicts the brightest of 4 x 4 patches in three colors, so rotated images and swapped colors differ.
NETWORK = """
<ir_version: 10, opset_import: ["" : 18]>
network (uint8[n, 224, 224, 3] pixels) => (float[n, 48] probabilities) <float ten = {10}> {
    values = Cast <to = 1> (pixels)
    channels_first = Transpose <perm = [0, 3, 1, 2]> (values)
    patches = AveragePool <kernel_shape = [56, 56], strides = [56, 56]> (channels_first)
    flat = Flatten (patches)
    scaled = Div (flat, ten)
    probabilities = Softmax (scaled)
}
"""
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6


def network(folder: Path, weights: int = 0) -> Path:
    """The ONNX file of a version, with so many unused weights."""
    model = onnx.parser.parse_model(NETWORK)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(weights, np.float32), "unused"))
    onnx.save(model, folder / "network.onnx")
    return folder / "network.onnx"


def to_classifier(color: str) -> dict[str, object]:
    """The settings of a version."""
    return {"labels": PATCHES, "color": color, "framework": "torch"}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image file in this format."""
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def photographs() -> dict[str, bytes]:
    """Images that each need a different treatment."""
    transparent = picture(2, (300, 200)).copy()
    transparent.putalpha(Image.linear_gradient("L").resize((300, 200)))
    return {
        "photo.jpg": saved(picture(0, (500, 333)), "JPEG"),
        "large.jpg": saved(picture(1, (1000, 900)), "JPEG"),
        "sideways.jpg": saved(picture(5, (500, 333)), "JPEG", exif=SIDEWAYS),
        "transparent.png": saved(transparent, "PNG"),
        "few_colors.gif": saved(picture(3, (100, 90)).quantize(16), "GIF"),
        "print.jpg": saved(picture(4, (200, 300)).convert("CMYK"), "JPEG"),
        "gray.webp": saved(picture(6, (240, 180)).convert("L"), "WEBP", lossless=True),
        "sideways.tif": saved(picture(7, (240, 180)), "TIFF", exif=SIDEWAYS),
    }


@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_the_example_predicts_what_the_version_predicts(color: Literal["rgb", "gray"], tmp_path: Path) -> None:
    file = network(tmp_path)
    # In turn: a label that is always answered, one that never is, and one whose threshold no probability reaches.
    settings = to_classifier(color) | {"thresholds": [(0.0, None, 1.0)[label % 3] for label in range(len(PATCHES))]}
    write_edge_model(file, settings, tmp_path / "image_classifier.onnx")
    contents = photographs()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    command = [sys.executable, "-P", str(TEMPLATES / "example.py"), *contents]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    version = onnxruntime.InferenceSession(file)
    pixels = np.stack([to_pixels(content, 224, color) for content in contents.values()])
    for line, name, expected in zip(
        output.splitlines(), contents, version.run(None, {"pixels": pixels})[0], strict=True
    ):
        best = int(expected.argmax())
        assert line.startswith(f"{name} {'abstains, perhaps ' if best % 3 else ''}{PATCHES[best]} "), line
        # Pillow resizes here, and gray images before they are rotated: values are rounded differently.
        assert float(line.split()[-1]) == pytest.approx(expected[best], abs=1e-3), line


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize("size", [(333, 500), (100, 700), (40, 30), (224, 224)])
def test_the_edge_model_resizes_as_versions_do(
    color: Literal["rgb", "gray"], size: tuple[int, int], tmp_path: Path
) -> None:
    file = network(tmp_path)
    write_edge_model(file, to_classifier(color), tmp_path / "edge.onnx")
    image = picture(8, size)
    expected = onnxruntime.InferenceSession(file).run(None, {"pixels": [to_pixels(saved(image, "PNG"), 224, color)]})
    found = onnxruntime.InferenceSession(tmp_path / "edge.onnx").run(None, {"image": np.asarray(image)})
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)


def test_the_example_is_short() -> None:
    lines = [line for line in (TEMPLATES / "example.py").read_text().splitlines() if line]
    assert len(lines) <= 19


def test_a_model_that_is_too_large_is_not_written(tmp_path: Path) -> None:
    file = network(tmp_path, weights=4_000_000)
    with pytest.raises(ValueError, match=r"has 16,00\d,\d{3} bytes, but devices accept at most 15,000,000"):
        write_edge_model(file, to_classifier("rgb"), tmp_path / "edge.onnx")
    assert not (tmp_path / "edge.onnx").exists()
