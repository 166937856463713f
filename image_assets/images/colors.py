"""Decoded images in sRGB or gray with 8 bits: color profiles, transparency, palettes.

This file stands alone: a copy is stored with every model version.
"""

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL import ImageCms

LIKE_SRGB = 2  # levels by which colors may differ under a profile that is sRGB by another name
VISIBLE = 8  # levels by which a picture differs from its ground at least


def in_mode(image: Image.Image, mode: Literal["L", "RGB"], profile: bytes | None = None) -> Image.Image:
    """An image of 8 bits per channel as sRGB or gray.

    Its profile is applied, and transparency is laid on white, or on black if nothing could be seen on white.
    """
    alpha = _alpha(image) if image.has_transparency_data else None
    if image.mode == "LAB":
        image = _from_lab(image)
    elif profile:
        image = _to_srgb(image, profile)
    if alpha is not None:
        image = _on_ground(image.convert("RGB"), alpha)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def needs_colors(image: Image.Image) -> bool:
    """Whether an opened image has a profile other than sRGB, for which gray is computed from its colors."""
    profile = image.info.get("icc_profile")
    return bool(profile) and _transform(profile, _profiled_mode(image)) is not None


def _alpha(image: Image.Image) -> Image.Image | None:
    """The alpha channel; None if all is opaque, or all is transparent, which programs write that mean no alpha."""
    alpha = image.getchannel("A") if "A" in image.getbands() else image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() in ((255, 255), (0, 0)) else alpha


def _on_ground(image: Image.Image, alpha: Image.Image) -> Image.Image:
    on_white = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    if min(low for low, _ in _extrema(on_white)) > 255 - VISIBLE:
        return Image.composite(image, Image.new("RGB", image.size, "black"), alpha)
    return on_white


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    return [band.getextrema() for band in image.split()]  # pyright: ignore[reportReturnType] - one band, one pair


def _profiled_mode(image: Image.Image) -> str:
    """The mode in which an image's profile is applied."""
    if image.mode in ("1", "L", "LA", "I;16", "I", "F"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    mode = _profiled_mode(image)
    transform = _transform(profile, mode)
    if transform is None:
        return image
    return transform.apply(image if image.mode == mode else image.convert(mode))


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> "ImageCms.ImageCmsTransform | None":
    """The transform of a profile to sRGB; None if it changes nothing, or the profile cannot be used."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None  # a broken profile, or one for other colors than these
    colors = _sample_colors(mode)
    change = np.asarray(transform.apply(colors)).astype(int) - np.asarray(colors.convert("RGB"))
    return None if np.abs(change).max() <= LIKE_SRGB else transform


def _sample_colors(mode: str) -> Image.Image:
    """Colors that cover the whole range."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    channels = np.stack(np.meshgrid(*[steps] * (4 if mode == "CMYK" else 3)), axis=-1)
    values = np.ascontiguousarray(channels.reshape(1, -1, channels.shape[-1]))
    return Image.frombytes(mode, (values.shape[1], 1), values.tobytes())


def _from_lab(image: Image.Image) -> Image.Image:
    return _lab_transform().apply(image)


@lru_cache(maxsize=1)
def _lab_transform() -> "ImageCms.ImageCmsTransform":
    from PIL import ImageCms

    # Photoshop and TIFF mean the white of D50, as profiles do.
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
