"""Images of every mode and depth have the values that independent readers find, or are refused with the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from plait.codecs.images import read_image
from plait.common.errors import DataError

SIZE = 8
RAMP = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)


def read(folder, name="a.png") -> np.ndarray:
    return read_image(name, folder, SIZE)


def saved(folder, image, name="a.png", **settings) -> np.ndarray:
    image.save(folder / name, **settings)
    return read(folder, name)


def grey(values) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def reason(folder, name="a.png") -> str:
    with pytest.raises(DataError) as error:
        read(folder, name)
    assert "\n" not in str(error.value) and name in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path, suffix):
    """Pillow's own conversion makes it white."""
    for value, expected in ((32896, 128), (0, 0), (65535, 255), (257, 1), (200, 1)):
        image = Image.fromarray(np.full((SIZE, SIZE), value, np.uint16))
        assert (saved(tmp_path, image, f"a.{suffix}") == expected).all(), value


def png_file(values: np.ndarray, bits: int, colour: int, *, transparent: bytes = b"") -> bytes:
    """Write a PNG by hand, [H, W] or [H, W, C], big-endian."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = values.astype(">u2" if bits == 16 else "u1").reshape(len(values), -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    clear = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + clear + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def on_white(colours, alpha, scale) -> np.ndarray:
    """Return colours from 0 to 255 with alpha from 0 to ``scale`` before white."""
    return 255 * (1 - alpha / scale) + colours * (alpha / scale)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_png_of_every_colour_and_depth(tmp_path, bits, colour):
    """Grey, RGB, and both with alpha; of 16 bits a colour, Pillow keeps the upper 8."""
    channels, scale = {0: 1, 2: 3, 4: 2, 6: 4}[colour], (1 << bits) - 1
    values = np.random.default_rng(colour).integers(0, scale + 1, (SIZE, SIZE, channels))
    (tmp_path / "a.png").write_bytes(png_file(values, bits, colour))
    png = pytest.importorskip("png")
    _, _, rows, found = png.Reader(bytes=(tmp_path / "a.png").read_bytes()).read()
    assert (found["bitdepth"], found["planes"]) == (bits, channels)
    expected = np.array([list(row) for row in rows]).reshape(values.shape).astype(float)
    if channels in (2, 4):  # with alpha
        expected = on_white(expected[..., :-1] * 255 / scale, expected[..., -1:], scale)
    else:
        expected = expected * 255 / scale
    assert np.abs(read(tmp_path).astype(float) - expected).max() <= (1 if bits == 8 or channels == 1 else 2.1)


def test_png_where_one_value_is_transparent(tmp_path):
    values = np.array(RAMP) * 1000
    (tmp_path / "a.png").write_bytes(png_file(values, 16, 0, transparent=struct.pack(">H", 7000)))
    expected = np.where(values == 7000, 255, np.rint(values / 257))
    assert (read(tmp_path) == grey(expected)).all()
    colours = np.stack([values, values // 2, values // 3], axis=-1)
    (tmp_path / "b.png").write_bytes(png_file(colours, 16, 2, transparent=struct.pack(">HHH", *colours[1, 1])))
    assert (read(tmp_path, "b.png")[1, 1] == 255).all() and (read(tmp_path, "b.png")[1, 2] < 40).all()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_of_few_greys_of_which_one_is_transparent(tmp_path, bits):
    """Pillow scales greys of 2 and 4 bits to 255, and not the one that is transparent."""
    png, most = pytest.importorskip("png"), (1 << bits) - 1
    values = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % (most + 1)
    for is_interlaced in (False, True):
        writer = png.Writer(SIZE, SIZE, greyscale=True, bitdepth=bits, transparent=1, interlace=is_interlaced)
        with open(tmp_path / "a.png", "wb") as file:
            writer.write(file, values.tolist())
        assert (read(tmp_path) == grey(np.where(values == 1, 255, values * 255 // most))).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "u2", "f4", "bool"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_tiff_of_every_depth(tmp_path, order, kind, photometric):
    tifffile = pytest.importorskip("tifffile")
    white = {"u1": 255, "u2": 65535, "f4": 1.0, "bool": 1}[kind]
    values = (RAMP % 2).astype(bool) if kind == "bool" else (RAMP / RAMP.max() * white).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=order, photometric=photometric)
    written = tifffile.imread(tmp_path / "a.tif").astype(float) / white
    if (kind, order, photometric) == ("u2", ">", "miniswhite"):  # which Pillow does not open
        assert "is not a readable image (it is a TIFF image" in reason(tmp_path, "a.tif")
        return
    light = written if photometric == "minisblack" else 1 - written
    assert np.abs(read(tmp_path, "a.tif").astype(float) - grey(np.rint(light * 255))).max() <= 1


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("photometric", ["rgb", "rgba", "separated", "ycbcr"])
def test_colour_tiff_is_right_or_refused(tmp_path, planes, kind, photometric):
    """Pillow opens planes of 16 bits, and reads noise."""
    tifffile = pytest.importorskip("tifffile")
    channels, white = 3 if photometric in ("rgb", "ycbcr") else 4, {"u1": 255, "u2": 65535}[kind]
    values = (np.random.default_rng(0).random((SIZE, SIZE, channels)) * white).astype(kind)
    more = {"extrasamples": ["unassalpha"]} if photometric == "rgba" else {}
    shaped = np.moveaxis(values, -1, 0) if planes == "separate" else values
    name = "rgb" if photometric == "rgba" else photometric
    tifffile.imwrite(tmp_path / "a.tif", shaped, photometric=name, planarconfig=planes, **more)
    light = values.astype(float) / white
    colours, last = light[..., :3], light[..., 3:]
    try:
        found = read(tmp_path, "a.tif")
    except DataError as error:
        assert planes == "separate" or photometric == "ycbcr", error
        return
    if photometric == "ycbcr":
        return  # as Pillow converts it
    if photometric == "rgba":
        expected = on_white(255 * colours, last, 1)
    else:
        expected = 255 * colours if photometric == "rgb" else 255 * (1 - colours) * (1 - last)
    assert np.abs(found - expected).max() <= 2.1


def test_floats_of_another_range_and_numbers_with_a_sign_are_refused(tmp_path):
    half = Image.fromarray(np.full((SIZE, SIZE), 0.5, np.float32))
    assert (saved(tmp_path, half, "a.tif") == 128).all()
    for value, text in ((-0.1, "holds floats, -0.1 to 0"), (255.0, "holds floats, 0 to 255"), (np.nan, "no numbers")):
        values = np.zeros((SIZE, SIZE), np.float32)
        values[3, 3] = value
        Image.fromarray(values).save(tmp_path / "a.tif")
        assert text in reason(tmp_path, "a.tif") and "8 or 16 bits" in reason(tmp_path, "a.tif")
    Image.fromarray(np.full((SIZE, SIZE), 32896, np.int32)).save(tmp_path / "a.tif")
    assert "whole numbers with a sign" in reason(tmp_path, "a.tif")


def test_tiff_of_32_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for kind, value, expected in (("u4", 0x80808080, 128), ("u4", 2**32 - 1, 255), ("u4", 0, 0)):
        tifffile.imwrite(tmp_path / "a.tif", np.full((SIZE, SIZE), value, kind), photometric="minisblack")
        assert (read(tmp_path, "a.tif") == expected).all()
    for kind, text in (
        ("u4", "next to nothing of 4,294,967,295"),
        ("i2", "a sign"),
        ("i1", "a sign"),
        ("i4", "a sign"),
    ):
        tifffile.imwrite(tmp_path / "a.tif", np.full((SIZE, SIZE), 100, kind), photometric="minisblack")
        assert text in reason(tmp_path, "a.tif")


def test_lab_is_the_colour_that_its_formula_says(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]])
    lab = np.array(
        [[54.29, 80.81, 69.89], [87.82, -79.29, 80.99], [29.57, 68.3, -112.03], [100, 0, 0], [0, 0, 0]]
    )  # D50
    tifffile = pytest.importorskip("tifffile")
    stored = np.stack([lab[:, 0] * 2.55, lab[:, 1] % 256, lab[:, 2] % 256], axis=1).round().astype(np.uint8)
    for row, colour in zip(stored, colours, strict=True):
        tifffile.imwrite(tmp_path / "a.tif", np.full((SIZE, SIZE, 3), row), photometric="cielab")
        assert np.abs(read(tmp_path, "a.tif")[0, 0].astype(int) - colour).max() <= 25, colour


def test_every_mode_that_pillow_saves(tmp_path):
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8))
    light = np.asarray(colours.convert("L"))
    assert (saved(tmp_path, colours) == np.asarray(colours)).all()
    assert (saved(tmp_path, colours.convert("L")) == grey(light)).all()
    assert (saved(tmp_path, colours.convert("1")) == grey(np.asarray(colours.convert("1")) * 255)).all()
    values = np.asarray(alpha).astype(float)
    assert np.abs(saved(tmp_path, alpha) - on_white(values[..., :3], values[..., 3:], 255)).max() <= 1
    palette = colours.quantize(16)
    assert (saved(tmp_path, palette) == np.asarray(palette.convert("RGB"))).all()
    clear = np.asarray(palette) == 3
    found = saved(tmp_path, palette, transparency=3)
    assert (found[clear] == 255).all() and (found[~clear] == np.asarray(palette.convert("RGB"))[~clear]).all()
    for mode, name in (("CMYK", "a.tif"), ("YCbCr", "a.tif"), ("LA", "a.png"), ("CMYK", "a.jpg"), ("L", "a.jpg")):
        flat = Image.new("RGB", (SIZE, SIZE), (200, 100, 50) if mode != "L" else (90, 90, 90)).convert(mode)
        expected = np.asarray(flat.convert("RGB"))
        assert np.abs(saved(tmp_path, flat, name).astype(int) - expected).max() <= 3, (mode, name)


def test_icons_telephones_and_moving_images(tmp_path):
    """Of several frames the first is read."""
    red = np.array([255, 0, 0])
    for suffix, form in (("ico", None), ("mpo", "MPO"), ("gif", None), ("webp", None), ("tif", None)):
        first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
        more = {"sizes": [(16, 16)]} if suffix == "ico" else {"save_all": True, "append_images": [second]}
        first.save(tmp_path / f"a.{suffix}", form, **more)
        assert np.abs(read(tmp_path, f"a.{suffix}").astype(int) - red).max() <= 2, suffix


@pytest.mark.parametrize(("mode", "name"), [("RGB", "a.jpg"), ("RGB", "a.tif"), ("I;16", "a.tif"), ("L", "a.png")])
def test_turned_images_of_every_depth(tmp_path, mode, name):
    values = np.zeros((SIZE, SIZE), np.uint16 if mode == "I;16" else np.uint8)
    values[: SIZE // 2] = np.iinfo(values.dtype).max
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = Image.fromarray(values).convert(mode) if mode != "I;16" else Image.fromarray(values)
    found = saved(tmp_path, image, name, exif=exif)
    assert found[0].mean() < 20 and found[-1].mean() > 235


SEEM = {
    "heic": (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC image; convert it to PNG or JPEG"),
    "avif": (b"\0\0\0\x18ftypavif" + bytes(40), "an AVIF image; convert it"),
    "svg": (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing; render it to PNG"),
    "pdf": (b"%PDF-1.7\n" + bytes(40), "a PDF document"),
    "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page, which a server sent"),
    "empty": (b"", "it is empty; get the file itself again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "a gzip file; unpack it"),
    "zeros": (bytes(2000), "nothing but zeros"),
    "words": (b"not an image", "of no kind that is known: 'not an image'"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(40), "a video"),
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "a JPEG 2000 image; convert it"),
}


@pytest.mark.parametrize("kind", SEEM)
def test_what_cannot_be_read_is_named_by_its_first_bytes(tmp_path, kind):
    data, text = SEEM[kind]
    (tmp_path / "a.png").write_bytes(data)
    assert text in reason(tmp_path) and "MPO" not in reason(tmp_path)


def test_a_cut_image_is_said_to_be_cut(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[:900])
    assert "it is a JPEG image, corrupt or cut short" in reason(tmp_path, "a.jpg")


@pytest.mark.parametrize("kind", ["f2", "f8", "u8"])
def test_a_whole_image_of_another_depth_is_not_said_to_be_cut(tmp_path, kind):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", np.ones((SIZE, SIZE), kind), photometric="minisblack")
    said = reason(tmp_path, "a.tif")
    assert "stored in a way that is not read" in said and "save it with 8 or 16 bits" in said and "cut" not in said


def test_a_value_that_is_no_path_is_shown_in_short(tmp_path):
    with pytest.raises(DataError, match="must be the path") as error:
        read_image({"array": [0.5] * 100_000}, tmp_path, SIZE)
    assert len(str(error.value)) < 1000
