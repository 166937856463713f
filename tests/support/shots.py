"""Pictures that are alike and are not the same photograph: a part under a fixed camera, discs, swatches; and edits."""

import colorsys
import math
from collections.abc import Callable
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

Ground = Literal["plain", "gradient", "rough"]
BICUBIC = Image.Resampling.BICUBIC


def compressed(image: Image.Image, quality: int = 85) -> Image.Image:
    """The image as a JPEG shows it."""
    content = BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def cropped(image: Image.Image, left: float = 0.5, top: float = 0.5, scale: float = 0.9) -> Image.Image:
    """A part of the image; `left` and `top` say how much of what is cut off is cut off there."""
    width, height = image.size
    x, y = left * (1 - scale) * width, top * (1 - scale) * height
    return image.crop((round(x), round(y), round(x + scale * width), round(y + scale * height)))


def straightened(image: Image.Image, degrees: float) -> Image.Image:
    """The image rotated, without its empty corners."""
    width, height = image.size
    cosine, sine = math.cos(math.radians(abs(degrees))), math.sin(math.radians(abs(degrees)))
    scale = min(width / (width * cosine + height * sine), height / (width * sine + height * cosine))
    return cropped(image.rotate(degrees, BICUBIC), scale=scale)


def resized(image: Image.Image, factor: float) -> Image.Image:
    """The image in another size."""
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed": lambda image: compressed(image, 40),
    "resized": lambda image: compressed(resized(image, 0.5)),
    "mirrored": lambda image: compressed(ImageOps.mirror(image)),
    "cropped": lambda image: compressed(cropped(image)),
    "cropped_at_a_corner": lambda image: compressed(cropped(image, 0, 1)),
    "cropped_off_center": lambda image: compressed(cropped(image, 0.3, 0.8)),
    "rotated": lambda image: compressed(image.rotate(3, BICUBIC)),
    "straightened": lambda image: compressed(straightened(image, -3)),
    "brightened": lambda image: compressed(ImageEnhance.Brightness(image).enhance(1.3)),
    "darkened": lambda image: compressed(ImageEnhance.Brightness(image).enhance(0.7)),
}


def part_under_a_camera(number: int, *, scratched: bool, ground: Ground) -> Image.Image:
    """A plate on a belt: moved by up to 8 pixels of 360, turned by up to 3°, in light that varies by 15 %."""
    chance = np.random.default_rng(number)
    size = (480, 360)
    plate = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(plate)
    draw.rounded_rectangle((130, 100, 350, 260), 15, fill=(190, 190, 195))
    draw.ellipse((205, 145, 275, 215), fill=(150, 140, 90))
    for x, y in ((160, 130), (320, 130), (160, 230), (320, 230)):
        draw.ellipse((x - 12, y - 12, x + 12, y + 12), fill=(60, 60, 60))
    if scratched:
        x, y = chance.uniform(150, 250), chance.uniform(120, 200)
        draw.line((x, y, x + chance.uniform(30, 60), y + chance.uniform(-30, 30)), fill=(80, 80, 80), width=2)
    moved = (int(chance.integers(-8, 9)), int(chance.integers(-8, 9)))
    plate = plate.rotate(chance.uniform(-3, 3), BICUBIC, translate=moved)
    scene = Image.alpha_composite(_ground(ground, size).convert("RGBA"), plate).convert("RGB")
    light = np.asarray(scene) * chance.uniform(0.85, 1.15) + chance.normal(0, 3, (*size[::-1], 3))
    return compressed(Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)), 90)


def _ground(ground: Ground, size: tuple[int, int]) -> Image.Image:
    if ground == "rough":
        grain = np.clip(np.random.default_rng(0).normal(118, 25, (60, 80)), 0, 255)
        return Image.fromarray(grain.astype(np.uint8)).resize(size, BICUBIC).convert("RGB")
    if ground == "gradient":
        return Image.linear_gradient("L").resize(size).point([90 + value // 4 for value in range(256)]).convert("RGB")
    return Image.new("RGB", size, (120, 118, 115))


def disc(number: int, *, red: bool, spread: int) -> Image.Image:
    """A red or green disc of the same gray, at most `spread` pixels from the center; only noise differs without it."""
    chance = np.random.default_rng(number)
    image = Image.new("RGB", (200, 200), (230, 230, 230))
    x, y = chance.integers(100 - spread, 101 + spread, 2).tolist()
    ImageDraw.Draw(image).ellipse((x - 50, y - 50, x + 50, y + 50), fill=(170, 60, 60) if red else (40, 116, 66))
    noisy = np.asarray(image) + chance.normal(0, 2, (200, 200, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def swatch(number: int) -> Image.Image:
    """One of 20 colors, and nothing else."""
    color = colorsys.hsv_to_rgb(number / 20, 0.7, 0.8)
    return Image.new("RGB", (100, 100), tuple(round(255 * value) for value in color))
