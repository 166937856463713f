"""What caches hold of an image, in words."""

from typing import Literal

Content = Literal["original", "jpeg", "pixels"]
Color = Literal["rgb", "gray"]
