"""What a file is by its first bytes, and what helps where it is not of a kind that is read."""

import re
from dataclasses import dataclass
from pathlib import Path

HEAD = 1024
"""First bytes of a file that `kind_of` wants."""


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    name: str
    """With its article, such as "a PDF document"."""
    cure: str = ""
    """What the user can do where images or sound were expected; "" where nothing helps but another file."""
    is_media: bool = False
    """Whether it is an image or sound."""


_TO_PNG = "convert it to PNG or JPEG"
_UNPACK = "unpack it and name the files in it"
_AGAIN = "get the file itself again"

_STARTS: list[tuple[bytes, Kind]] = [
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG image", is_media=True)),
    (b"\xff\xd8\xff", Kind("a JPEG image", is_media=True)),
    (b"GIF8", Kind("a GIF image", is_media=True)),
    (b"II*\0", Kind("a TIFF image", is_media=True)),
    (b"MM\0*", Kind("a TIFF image", is_media=True)),
    (b"II+\0", Kind("a BigTIFF image", _TO_PNG, True)),
    (b"MM\0+", Kind("a BigTIFF image", _TO_PNG, True)),
    (b"\0\0\1\0", Kind("an icon (ICO)", is_media=True)),
    (b"\0\0\0\x0cjP  ", Kind("a JPEG 2000 image", _TO_PNG, True)),
    (b"\0\0\0\x0cJXL ", Kind("a JPEG XL image", _TO_PNG, True)),
    (b"\xff\x0a", Kind("a JPEG XL image", _TO_PNG, True)),
    (b"8BPS", Kind("a Photoshop file", _TO_PNG, True)),
    (b"gimp xcf", Kind("a GIMP file", _TO_PNG, True)),
    (b"DDS ", Kind("a DDS texture", _TO_PNG, True)),
    (b"v/1\x01", Kind("an OpenEXR image", "convert it to PNG with 8 or 16 bits", True)),
    (b"#?RADIANCE", Kind("a Radiance HDR image", "convert it to PNG with 8 or 16 bits", True)),
    (b"%!PS", Kind("a PostScript file", _TO_PNG, True)),
    (b"\xc5\xd0\xd3\xc6", Kind("a PostScript file", _TO_PNG, True)),
    (b"fLaC", Kind("a FLAC recording", is_media=True)),
    (b"OggS", Kind("an Ogg recording", is_media=True)),
    (b"ID3", Kind("an MP3 recording", is_media=True)),
    (b"FORM", Kind("an AIFF recording", is_media=True)),
    (b"#!AMR", Kind("an AMR recording", "convert it to WAV or FLAC (ffmpeg -i IN OUT.flac)", True)),
    (b"%PDF", Kind("a PDF document", "export its pages as PNG")),
    (b"PK\x05\x06", Kind("an empty zip archive")),
    (b"\x1f\x8b", Kind("a gzip file", _UNPACK)),
    (b"BZh", Kind("a bzip2 file", _UNPACK)),
    (b"\xfd7zXZ\0", Kind("an xz file", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("a zstd file", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7-zip archive", _UNPACK)),
    (b"Rar!", Kind("a RAR archive", _UNPACK)),
    (b"PAR1", Kind("a Parquet file")),
    (b"PARE", Kind("an encrypted Parquet file")),
    (b"ARROW1", Kind("an Arrow (Feather) file")),
    (b"\xff\xff\xff\xff", Kind("an Arrow stream, as Hugging Face's datasets keep in their cache")),
    (b"FEA1", Kind("a Feather file of version 1")),
    (b"ORC", Kind("an ORC file")),
    (b"Obj\x01", Kind("an Avro file")),
    (b"SQLite format 3\0", Kind("an SQLite database")),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file")),
    (b"\x93NUMPY", Kind("a NumPy array", "write what it holds as PNG, WAV or Parquet")),
    (b"version https://git-lfs", Kind("a Git LFS pointer, which stands where the file would be", "run: git lfs pull")),
    (b"\xff\xfe\0\0", Kind("UTF-32 text")),
    (b"\0\0\xfe\xff", Kind("UTF-32 text")),
    (b"\xff\xfe", Kind("UTF-16 text")),
    (b"\xfe\xff", Kind("UTF-16 text")),
    (b"\x80\x02", Kind("a Python pickle, which is never read")),
    (b"\x80\x03", Kind("a Python pickle, which is never read")),
    (b"\x80\x04", Kind("a Python pickle, which is never read")),
    (b"\x80\x05", Kind("a Python pickle, which is never read")),
    (b"BM", Kind("a BMP image", is_media=True)),
]

_BRANDS = {
    b"heic": "a HEIC image", b"heix": "a HEIC image", b"hevc": "a HEIC image", b"mif1": "a HEIF image",
    b"msf1": "a HEIF image", b"avif": "an AVIF image", b"avis": "an AVIF image",
}  # fmt: skip
_RIFF = {b"WEBP": Kind("a WebP image", is_media=True), b"WAVE": Kind("a WAV recording", is_media=True)}
_ZIP = Kind("a zip archive", _UNPACK)
_OFFICE = Kind("an Office document", "export what it holds: tables as CSV, text as plain text")
_ZIPPED = {
    rb"\[Content_Types\]\.xml|_rels/|xl/|word/|mimetype$": _OFFICE,
    rb".*/data\.pkl$": Kind("a PyTorch file, whose pickle is never read", "write what it holds as PNG, WAV or Parquet"),
    rb".*\.npy$": Kind("a NumPy archive", "write what it holds as PNG, WAV or Parquet"),
}
"""What else is a zip archive, by the name of the first file in it."""
_VIDEO = "take images or sound out of it (ffmpeg)"
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)", re.IGNORECASE | re.DOTALL)
_SVG = re.compile(rb"\s*(<\?xml.*?\?>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", re.IGNORECASE | re.DOTALL)


def kind_of(head: bytes) -> Kind | None:
    """Return what a file is by its first `HEAD` bytes, or None where they say nothing."""
    if not head:
        return Kind("empty", _AGAIN)
    if head[4:8] == b"ftyp":
        name = _BRANDS.get(head[8:12])
        return Kind(name, _TO_PNG, True) if name else Kind("a video or sound in an MP4 container", _VIDEO, True)
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], Kind("a RIFF file, such as an AVI video", _VIDEO, True))
    if head[:4] == b"\x1aE\xdf\xa3":
        return Kind("a Matroska or WebM video", _VIDEO, True)
    if head[257:262] == b"ustar":
        return Kind("a tar archive", _UNPACK)
    if head[:4] == b"PK\x03\x04":
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return next((kind for pattern, kind in _ZIPPED.items() if re.match(pattern, first)), _ZIP)
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf")
    if _SVG.match(text):
        return Kind("an SVG drawing", "render it to PNG")
    if _HTML.match(text):
        return Kind("an HTML page, which a server sent in place of the file", _AGAIN)
    if text[:5] == b"<?xml":
        return Kind("an XML file")
    if not head.strip(b"\0"):
        return Kind("nothing but zeros", _AGAIN)
    high, low = head[1:256:2].count(0), head[:256:2].count(0)  # of characters in two bytes, most have a zero
    if len(head) >= 8 and max(high, low) > 0.7 * len(head[1:256:2]) and min(high, low) == 0:
        return Kind("UTF-16LE text" if high > low else "UTF-16BE text")
    return None


def kind_of_file(path: Path) -> Kind | None:
    """Return what a file on disk is by its first bytes, or None where they say nothing or cannot be read."""
    try:
        with open(path, "rb") as file:
            return kind_of(file.read(HEAD))
    except OSError:
        return None


def unreadable(path: Path, reason: str, *, unknown: str = "") -> str:
    """Say why a file that should hold an image or sound cannot be read: what it is by its first bytes, and what helps.

    ``reason`` is the decoder's own, which counts where the file is of a kind that is read; ``unknown`` is said instead
    where no decoder took it.
    """
    if path.is_dir():
        return "it is a folder, give the path of one file"
    kind = kind_of_file(path)
    if kind is None:
        return f"its first bytes are of no kind that is known: {_start_of(path)}"
    if kind.is_media and not kind.cure:
        return f"it is {kind.name}{unknown}" if unknown else f"it is {kind.name}, corrupt or cut short: {reason}"
    return f"it is {kind.name}" + (f"; {kind.cure}" if kind.cure else "")


def _start_of(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        return error.strerror or "nothing"
    text = head.decode("ascii", "replace")
    return repr(text) if text.isprintable() else head[:8].hex(" ")
