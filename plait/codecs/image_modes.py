"""Every mode and depth of image that Pillow opens, as 8 bits of red, green and blue.

The rules: whole numbers without a sign are scaled by what their bits can hold, so that 65,535 of 16 bits is white;
floats from 0 to 1 are scaled by 255; what has a sign or another range is refused, because nobody knows what its black
and white are. Of several frames or pages the first is read. Colour profiles (ICC) are not applied: numbers are taken
as sRGB. Of 16 bits a colour, Pillow keeps the upper 8.
"""

from typing import Any

import numpy as np

from plait.common.errors import DataError

_MIN_IS_WHITE, _BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 0, 258, 262, 284, 339  # of TIFF
_UNSIGNED, _FLOAT = 1, 3
_LARGE = (1 << 32) - 1
_SAVE = "save it with 8 or 16 bits a colour"


def as_rgb(file: Any) -> Any:
    """Return an opened Pillow image in mode RGB, turned as its EXIF data says; what is transparent becomes white.

    Raises DataError with the reason, which goes on after the file's name.
    """
    import PIL.Image
    import PIL.ImageOps

    _check_tiff(file)
    clear = file.info.get("transparency")
    if isinstance(clear, tuple) and any(";16" in str(tile) for tile in file.tile):
        file.info["transparency"] = tuple(value >> 8 for value in clear)  # as Pillow reads the colours themselves
    for bits in (2, 4):
        if isinstance(clear, int) and any(f"L;{bits}" in str(tile) for tile in file.tile):
            file.info["transparency"] = clear * 255 // ((1 << bits) - 1)  # Pillow scales the greys alone
    image = PIL.ImageOps.exif_transpose(file)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey(image, file).convert("RGB")
    if image.mode == "LAB":
        return _from_lab(image)
    if image.mode in ("La", "RGBa"):  # colours multiplied by how opaque they are
        image = image.convert(image.mode[:-1] + "A")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _tag(image: Any, number: int, otherwise: int) -> int:
    """Return the first value of a tag, where the image is a TIFF."""
    value = getattr(image, "tag_v2", {}).get(number, otherwise)
    return int(value[0] if isinstance(value, tuple) else value)


def _check_tiff(image: Any) -> None:
    """Refuse what Pillow opens but reads wrongly."""
    bits, form = _tag(image, _BITS, 8), _tag(image, _SAMPLE_FORMAT, _UNSIGNED)
    if form not in (_UNSIGNED, _FLOAT):
        raise DataError(f"holds whole numbers with a sign, whose black and white are not known; {_SAVE}")
    if _tag(image, _PLANAR, 1) == 2 and len(image.getbands()) > 1 and (bits != 8 or image.mode == "LAB"):
        raise DataError(f"has its colours in planes of {bits} bits, which are not read; {_SAVE}, interleaved")


def _grey(image: Any, file: Any) -> Any:
    """Return grey of more than 8 bits in mode L; ``file`` is the image as it was opened, with its tags."""
    import PIL.Image

    values = np.asarray(image)
    light = _floats(values) if image.mode == "F" else _whole(values, _tag(file, _BITS, 16))
    if _tag(file, _PHOTOMETRIC, 1) == _MIN_IS_WHITE:
        light = 255 - light
    clear = file.info.get("transparency")
    if isinstance(clear, int):
        light = np.where(values == clear, 255, light)
    return PIL.Image.fromarray(np.ascontiguousarray(light, np.uint8))


def _floats(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also where one is no number
        value_range = f"{low:g} to {high:g}" if np.isfinite([low, high]).all() else "some that are no numbers"
        raise DataError(f"holds floats, {value_range}, of which only 0 (black) to 1 (white) are known; {_SAVE}")
    return np.rint(values * 255.0)


def _whole(values: np.ndarray, bits: int) -> np.ndarray:
    if bits > 16:
        values = values.view(np.uint32)
    white = (1 << bits) - 1
    if bits > 16 and 0 < values.max() < white // 255:
        raise DataError(
            f"holds whole numbers of {bits} bits up to {values.max():,}, next to nothing of {white:,}; {_SAVE}"
        )
    return np.rint(values.astype(np.float64) * (255 / white))


def _from_lab(image: Any) -> Any:
    from PIL import ImageCms

    change = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    return ImageCms.applyTransform(image, change)
