"""Pictures in bytes (PNG, JPEG, …) as arrays: (examples, channels, height, width), one byte a pixel and channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from compress_core.errors import DataError

_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"}


def decode(
    pictures: Sequence[bytes | None],
    size: tuple[int, int] | None,
    channels: int | None,
    row: Callable[[int], str],
    *,
    scale: bool,
) -> np.ndarray:
    """Decode pictures of one size into uint8 (examples, channels, height, width).

    Args:
        pictures: encoded in any format that Pillow reads.
        size: height and width; unless given, those of the first.
        channels: 1 for grey, 3 for red, green, blue; unless given, those of the first.
        row: names the place of a picture in an error.
        scale: whether a picture of another size is scaled (bilinear) rather than refused.

    Raises:
        DataError: a picture is missing, cannot be decoded, or has another size; the message names its row.
    """
    first = _open(pictures[0], row(0))
    channels = channels or (1 if first.mode in _GREY else 3)
    height, width = size or (first.height, first.width)
    found = np.empty((len(pictures), channels, height, width), dtype=np.uint8)
    for index, encoded in enumerate(pictures):
        picture = _open(encoded, row(index)).convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            if not scale:
                raise DataError(
                    f"{row(index)}: the image is {picture.height}x{picture.width}, the first one {height}x{width}",
                    mend=f"scale all of them: `size: [{height}, {width}]`",
                )
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
        found[index] = pixels if channels == 1 else pixels.transpose(2, 0, 1)
    return found


def _open(encoded: bytes | None, where: str) -> Image.Image:
    if not encoded:
        raise DataError(f"{where}: there is no image", mend="leave the row out")
    try:
        picture = Image.open(BytesIO(encoded))
        picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{where}: the image cannot be decoded: {error}", mend="leave the row out or write the file anew"
        ) from error
    if picture.mode not in _GREY | _COLOUR:
        raise DataError(
            f"{where}: the image has pixels of mode {picture.mode}, not of one byte a channel",
            mend="write it with 8 bits a channel",
        )
    return picture
