"""The heat map shows the part of an image that a network looks at."""

import json
import subprocess
import sys

import numpy as np
import pytest

from image_assets.models.occlusion import SQUARES, heat_map, to_heat, with_covers
from tests.support.photographs import PHOTOGRAPHS, WEIGHTS, photographs

SIDE = 224
PLANTED_PIXELS = 64
SHARES = 4
# In a process of its own, because of the framework: a head on the pretrained backbone that tells photographs with a red
# square from flowers. It prints the share of the heat in the square, for the first photographs of flowers that the head
# takes for the label of the square.
PLANTED = """
import json, os, sys
os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np, torch
from PIL import Image
from image_assets.models.backbones import CURRENT_BACKBONE
from image_assets.models.calibration import fit_scale, log_softmax
from image_assets.models.epochs import Batch
from image_assets.models.occlusion import heat_map
from image_assets.models.ridge_head import refit_ridge_head
from image_assets.models.torch_training import build_model
from tests.support.rank_programs import Alone

weights, square, wanted, *files = sys.argv[1:]
square, wanted, random = int(square), int(wanted), np.random.default_rng(0)
photographs = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]

def planted(photograph):
    row, column = random.integers(0, 224 - square, 2)
    where = np.zeros((224, 224), bool)
    where[row : row + square, column : column + square] = True
    return np.where(where[..., None], np.array((220, 20, 20), np.uint8), photograph), where

model, _ = build_model(3, CURRENT_BACKBONE, weights, 0)
names = [name for name, _ in model.named_children()]
layers = model[: 1 + names.index("embedding")].eval()
embedding = torch.jit.freeze(torch.jit.trace(layers, torch.zeros((1, 224, 224, 3), dtype=torch.uint8)))

def embed(pixels):
    parts = np.array_split(pixels, max(1, len(pixels) // 16))
    with torch.no_grad():
        return np.concatenate([embedding(torch.from_numpy(np.array(part))).numpy() for part in parts])

half = len(photographs) // 2  # of the first label, then as many of the second
trained = [*range(0, half - 6), *range(half, 2 * half - 6)]
flowers = [photographs[number] for number in trained]
pixels = np.stack([*flowers, *(planted(flower)[0] for flower in flowers)])
labels = np.array([*(number >= half for number in trained), *[2] * len(trained)], np.int64)
embeddings = embed(pixels)
head = refit_ridge_head([Batch(inputs=embeddings, label_indexes=labels)], 0.01, np.ones(3), Alone())
scale = fit_scale(head.outputs(embeddings), labels)

def network(pixels):
    outputs = head.outputs(embed(pixels)) * min(scale, 10)
    return np.exp(log_softmax(outputs))

shares = []
for photograph in [*photographs[half - 6 : half], *photographs[-6:]]:
    if len(shares) == wanted:
        break
    marked, where = planted(photograph)
    if network(marked[None]).argmax() == 2 and network(photograph[None]).argmax() != 2:
        heat = Image.fromarray(heat_map(network, marked).astype(np.float32))
        heat = np.asarray(heat.resize((224, 224), Image.Resampling.NEAREST))
        shares.append(float(heat[where].sum() / max(heat.sum(), 1e-9)))
print(json.dumps(shares))
"""


def test_the_heat_is_greatest_where_the_probability_falls_most() -> None:
    covers = len(with_covers(np.zeros((SIDE, SIDE, 3), np.uint8))) - 1
    assert to_heat(np.full(1 + covers, 0.8)).tolist() == np.zeros((SQUARES, SQUARES)).tolist()
    probabilities = np.full(1 + covers, 0.8)
    probabilities[1] = 0.3  # with the upper left corner covered
    heat = to_heat(probabilities)
    assert np.argmax(heat) == 0
    assert heat[0, 0] == pytest.approx(0.5)
    assert heat[0, 1] == pytest.approx(0.5 * 0.5**4), "the other cover of this square changes nothing"
    assert np.count_nonzero(heat) == 4
    assert np.ptp(to_heat(np.r_[0.8, np.full(covers, 0.6)])) == pytest.approx(0), "evidence may be everywhere"
    probabilities[1] = 0.9
    assert not to_heat(probabilities).any(), "a part that speaks against the label is no part of its heat"


@pytest.mark.parametrize("row", [0, 90, 180])
@pytest.mark.parametrize("column", [0, 90, 180])
@pytest.mark.parametrize("side", [SIDE, 299])
def test_the_heat_is_where_the_network_looks(row: int, column: int, side: int) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 100, (side, side, 3), np.uint8)
    part = slice(row, row + PLANTED_PIXELS), slice(column, column + PLANTED_PIXELS)
    pixels[part] = (220, 20, 20)
    shown = (pixels[:, :, 0] == 220).sum()

    def network(images: np.ndarray) -> np.ndarray:
        red = (images[:, :, :, 0].astype(int) - images[:, :, :, 1] > 150).sum(axis=(1, 2)) / shown
        return np.stack([red, 1 - red], axis=1)

    heat = heat_map(network, pixels)
    assert heat.shape == (SQUARES, SQUARES)
    inside = np.repeat(np.repeat(heat, 100, axis=0), 100, axis=1)  # one pixel of the image is 100 * SQUARES / side
    edges = (row, row + PLANTED_PIXELS, column, column + PLANTED_PIXELS)
    top, bottom, left, right = (round(100 * SQUARES / side * edge) for edge in edges)
    assert inside[top:bottom, left:right].sum() >= 0.6 * inside.sum()


@pytest.mark.training
@pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir() or not WEIGHTS.is_dir(),
    reason=f"no photographs in {PHOTOGRAPHS}, or no weights in {WEIGHTS}",
)
def test_a_planted_square_holds_most_of_the_heat() -> None:
    files = [*map(str, photographs("daisy")[:26]), *map(str, photographs("tulips")[:26])]
    answer = subprocess.run(
        [sys.executable, "-c", PLANTED, str(WEIGHTS), str(PLANTED_PIXELS), str(SHARES), *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    shares = json.loads(answer.stdout)
    assert len(shares) == SHARES, "of twelve photographs that were no training images"
    assert np.median(shares) >= 0.6, shares
