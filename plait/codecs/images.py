"""Images as the image codecs know them: reading, resizing, writing, and showing in a page."""

import base64
import contextlib
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.codecs.base import Codec, remark
from plait.codecs.image_modes import as_rgb
from plait.codecs.signatures import unreadable
from plait.common.errors import DataError, ResourceError, shown

MAX_PIXELS = 1 << 27
"""Pixels of an image that is read, about 134 million: what a small file unpacks to must fit in memory."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO")
"""Names of Pillow's readers that are used: those that need no other program, and hold no instructions. That of JPEG
reads the files of several images (MPO) that telephones write, too."""


_UNKNOWN = (
    " whose colours are stored in a way that is not read, or whose header is corrupt; "
    "save it with 8 or 16 bits a colour"
)


def _pillow():
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise ResourceError(
            "images: package 'pillow' is not installed, install it: pip install 'plait[media]'"
        ) from None
    return PIL.Image, PIL.ImageOps


def read_image(value: Any, base: Path, size: int, *, multiple: int = 0) -> np.ndarray:
    """Read an image file as uint8 [H, W, 3] of the sides that `image_sides` says. Raises DataError with the reason.

    Turned as its EXIF data says; what is transparent becomes white; other modes and depths as `as_rgb` says. Its size
    is checked before it is unpacked.
    """
    image_module, _ = _pillow()
    if not isinstance(value, str) or not value:
        raise DataError(f"image: {shown(value)} is not allowed, it must be the path of an image")
    path = Path(base) / value
    try:
        # Pillow's own warnings are about sizes that are checked here
        with warnings.catch_warnings(action="ignore"), image_module.open(path, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS or not file.width * file.height:
                raise DataError(
                    f"image: {str(path)!r} has {file.width:,} x {file.height:,} pixels, 1 to {MAX_PIXELS:,} are allowed"
                )
            try:
                image = as_rgb(file)
            except DataError as error:
                raise DataError(f"image: {str(path)!r} {error}") from None
            with contextlib.suppress(Exception):  # of damaged frames that are not read
                if getattr(file, "is_animated", False):
                    remark("images with more frames or pages, of which the first is read")
            if file.info.get("icc_profile"):
                remark("images with a colour profile (ICC), which is not applied")
    except FileNotFoundError:
        raise DataError(f"image: there is no file {str(path)!r}") from None
    except DataError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        unknown = _UNKNOWN if isinstance(error, image_module.UnidentifiedImageError) else ""
        said = unreadable(path, reason, unknown=unknown)
        raise DataError(f"image: {str(path)!r} is not a readable image ({said})") from None
    return _fit(image, image_sides(image.height, image.width, size, multiple=multiple))


def image_sides(height: int, width: int, size: int, *, multiple: int = 0) -> tuple[int, int]:
    """Return the height and width that an image is scaled and cut to.

    ``multiple`` 0: a square of ``size`` x ``size``. Else about its own aspect ratio: both sides are multiples of
    ``multiple``, and the area is the largest up to ``size``^2 for the shorter side. So an image never has more
    tokens than the square has, and an image that was shaped before keeps its shape.
    """
    if not multiple:
        return size, size
    across = size // multiple
    shapes = [(short, across**2 // short) for short in range(1, across + 1)]
    ratio = math.log(max(height, width) / min(height, width))
    short, long = min(shapes, key=lambda shape: abs(math.log(shape[1] / shape[0]) - ratio))
    return (short * multiple, long * multiple) if height < width else (long * multiple, short * multiple)


def resize_image(image: np.ndarray, size: int, *, multiple: int = 0) -> np.ndarray:
    """Return uint8 [H, W, 3] with the sides that `image_sides` says, scaled to cover them and cut to its middle.

    Cut rather than padded, so that every token describes a part of the image.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        what = f"{image.dtype} {list(image.shape)}"
        raise DataError(f"image: an array of {what} is not allowed, it must be uint8 [height, width, 3]")
    sides = image_sides(*image.shape[:2], size, multiple=multiple)
    if image.shape[:2] == sides:
        return image
    return _fit(_pillow()[0].fromarray(image), sides)


def _fit(image, sides: tuple[int, int]) -> np.ndarray:
    image_module, operations = _pillow()
    height, width = sides
    if image.size != (width, height):
        image = operations.fit(image, (width, height), image_module.Resampling.LANCZOS)
    return np.array(image)


def write_image(image: np.ndarray, path: Path) -> None:
    """Write uint8 [H, W, 3] as the kind of file that the suffix says."""
    _pillow()[0].fromarray(image).save(path)


def image_html(image: np.ndarray) -> str:
    """Return an <img> with the image inside, small ones with sharp pixels."""
    buffer = io.BytesIO()
    _pillow()[0].fromarray(image).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = image.shape[:2]
    shown = max(width, 128)
    style = ' style="image-rendering: pixelated"' if width < shown else ""
    shape = f'width="{shown}" height="{round(height * shown / width)}"'
    return f'<img alt="" {shape}{style} src="data:image/png;base64,{data}">'


def to_unit(images: np.ndarray | Tensor) -> Tensor:
    """Turn uint8 [B, H, W, 3] into float32 [B, 3, H, W] from -1 to 1."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements="W"))
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def from_unit(images_BCHW: Tensor) -> np.ndarray:
    """Turn float [B, 3, H, W] from -1 to 1 into uint8 [B, H, W, 3]."""
    levels = images_BCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    """Return the mean over images of their peak signal-to-noise ratio in dB, uint8 [B, H, W, 3]; equal: 100."""
    error = ((images.astype(np.float64) - others.astype(np.float64)) ** 2).reshape(len(images), -1).mean(1)
    return float(np.minimum(10 * np.log10(255**2 / np.maximum(error, 1e-12)), 100).mean())


def thumbnails(images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return uint8 [B, H, W, 3] averaged down to ``grid`` and scaled up again: what as many tokens give for nothing."""
    unit = to_unit(images)
    small = torch.nn.functional.adaptive_avg_pool2d(unit, grid)
    return from_unit(torch.nn.functional.interpolate(small, size=unit.shape[-2:], mode="bilinear"))


def round_trip(codec: Codec, sized: np.ndarray) -> dict[str, float]:
    """Return ``psnr``, ``psnr_thumbnail`` (averaged to as many pixels as tokens) and ``codes_used`` (share of ids)."""
    encoded = codec.encode(sized)
    decoded = np.stack(codec.decode(encoded))
    used = len(np.unique(np.concatenate([e.ids for e in encoded])))
    return {
        "psnr": psnr(sized, decoded),
        "psnr_thumbnail": psnr(sized, thumbnails(sized, encoded[0].grid)),
        "codes_used": used / codec.vocab_size,
    }
