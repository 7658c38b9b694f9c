"""Images in two layers: a thing has the same ids, or components, on every background."""

from pathlib import Path

import numpy as np
import pytest

from plait.codecs import codec_class, load_codec
from plait.codecs.base import Encoded
from plait.codecs.image_components import ImageComponentCodec
from plait.codecs.image_layers import ImageLayerCodec
from plait.common.errors import ConfigError, DataError
from plait.common.randomness import generator

OPTIONS = {"size": 16, "downsample": 4, "levels": [4, 4, 4], "channels": 16, "steps": 40, "backgrounds": 4}
COLOURS = np.array([(255, 255, 255), (216, 67, 59), (79, 146, 221)], np.uint8)
FLAT = 64  # ids of patches that show something; above are backgrounds


def thing(i: int, background: np.ndarray) -> np.ndarray:
    """Draw a rectangle of random colours, nowhere near a background, on one colour."""
    rng = generator(0, "test thing", item=i)  # the corner stays bare
    image = np.empty((16, 16, 3), np.uint8)
    image[:] = background
    x, y, w, h = rng.integers(4, 9, 4)
    inside = image[y : min(y + h, 15), x : min(x + w, 15)]
    inside[:] = rng.integers(100, 140, inside.shape) * np.array([0, 1, 0])
    return image


def fitted(name: str, options: dict, folder: Path):
    codec = codec_class(name).from_options(options)
    images = [thing(i, COLOURS[i % 3]) for i in range(60)]
    codec.fit(images, minutes=1, seed=0, folder=folder, progress=lambda share, text: None)
    return codec


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> ImageLayerCodec:
    codec = fitted("image_layers", OPTIONS, tmp_path_factory.mktemp("fit"))
    assert isinstance(codec, ImageLayerCodec)
    return codec


def test_a_thing_has_the_same_ids_on_every_background(codec):
    for i in range(20):
        rows = [codec.encode([thing(100 + i, colour)])[0].ids for colour in COLOURS]
        assert len({row[0] for row in rows}) == 3 and rows[0].min() < FLAT  # the corner is bare, the middle is not
        for row in rows:
            assert np.array_equal(row < FLAT, rows[0] < FLAT)
            assert np.array_equal(row[row < FLAT], rows[0][rows[0] < FLAT])


def test_bare_patches_are_the_background_exactly(codec):
    images = [thing(i, COLOURS[i % 3]) for i in range(200, 212)]
    encoded = codec.encode(images)
    assert codec.vocab_size == FLAT + 4 and all(e.grid == (4, 4) and e.ids.dtype == np.int32 for e in encoded)
    for image, item, decoded in zip(images, encoded, codec.decode(encoded)):
        bare = np.kron(item.ids.reshape(4, 4) >= FLAT, np.ones((4, 4))) > 0
        assert bare.any() and np.array_equal(image[bare], decoded[bare])


def test_what_stands_on_another_background_shows_that_one(codec):
    first = codec.encode([thing(300, COLOURS[0])])[0].ids
    other = codec.encode([thing(300, COLOURS[1])])[0].ids
    moved = np.where(first >= FLAT, other, first)
    a, b = codec.decode([Encoded(ids=moved), Encoded(ids=other)])
    assert np.array_equal(a, b)
    # of several backgrounds, the one that most patches have
    one = other.copy()
    one[0] = first[0]
    assert np.array_equal(codec.decode([Encoded(ids=one)])[0], b)


def test_an_image_without_a_background_has_ids_of_patches(codec):
    noise = generator(1, "test noise").integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    encoded = codec.encode(list(noise))
    assert all(e.ids.max() < FLAT for e in encoded)
    assert codec.decode(encoded)[0].shape == (16, 16, 3)
    other = np.full((16, 16, 3), (0, 0, 90), np.uint8)  # one colour, but none that it was fitted to
    assert codec.encode([other])[0].ids.max() < FLAT


def test_any_ids_decode(codec):
    ids = generator(2, "test ids").integers(codec.vocab_size, size=(5, 16)).astype(np.int32)
    assert all(d.shape == (16, 16, 3) for d in codec.decode([Encoded(ids=row) for row in ids]))
    with pytest.raises(DataError, match="15 ids are not an image"):
        codec.decode([Encoded(ids=ids[0, :15])])


def test_saved_and_one_by_one(codec, tmp_path):
    images = [thing(i, COLOURS[i % 3]) for i in range(400, 410)]
    codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    together = codec.encode(images)
    for image, item in zip(images, together):
        assert np.array_equal(again.encode([image])[0].ids, item.ids)
    assert np.array_equal(again.decode(together), codec.decode(together))
    assert again.quality(images) == codec.quality(images)


@pytest.mark.parametrize("count", [0, 5000])
def test_wrong_number_of_backgrounds(count):
    with pytest.raises(ConfigError, match=f"codec_options.backgrounds: {count}"):
        ImageLayerCodec.from_options({"backgrounds": count})


# the same for components


@pytest.fixture(scope="module")
def components(tmp_path_factory) -> ImageComponentCodec:
    options = {"size": 16, "patch_size": 4, "components": 24, "backgrounds": 4}
    return fitted("image_components", options, tmp_path_factory.mktemp("fit"))


def test_a_thing_has_the_same_components_on_every_background(components):
    for i in range(10):
        rows = [components.encode([thing(500 + i, colour)])[0].latents for colour in COLOURS]
        assert rows[0].shape == (16, 27)
        for row in rows[1:]:
            assert np.allclose(row[:, :-3], rows[0][:, :-3], atol=1e-5)
            assert not np.allclose(row[:, -3:], rows[0][:, -3:], atol=0.1)
        # what is drawn on one background and said to stand on another, stands on that
        moved = np.concatenate([rows[0][:, :-3], rows[1][:, -3:]], 1)
        a, b = components.decode([Encoded(latents=moved, grid=(4, 4)), Encoded(latents=rows[1], grid=(4, 4))])
        assert np.abs(a.astype(int) - b).max() <= 1


def test_a_background_nearly_said_is_exact(components):
    image = thing(600, COLOURS[1])
    (item,) = components.encode([image])
    noisy = item.latents + 0.05 * generator(3, "test latents").standard_normal(item.latents.shape).astype(np.float32)
    (decoded,) = components.decode([Encoded(latents=noisy, grid=item.grid)])
    corner = image[:4, :4]
    assert (corner == COLOURS[1]).all() and np.array_equal(decoded[:4, :4], corner)


def test_components_of_an_image_without_a_background_are_of_the_image(components):
    noise = generator(4, "test noise").integers(0, 256, (16, 16, 3)).astype(np.uint8)
    (item,) = components.encode([noise])
    all_of_it = codec_class("image_components").from_options(
        {"size": 16, "patch_size": 4, "components": 64, "backgrounds": 4}
    )
    all_of_it.fit([noise], minutes=1, seed=0, folder=None, progress=lambda share, text: None)
    assert item.latents.shape == (16, 27)
    (decoded,) = all_of_it.decode(all_of_it.encode([noise]))
    assert np.abs(decoded.astype(int) - noise).max() <= 1


def test_layered_components_are_saved(components, tmp_path):
    images = [thing(i, COLOURS[i % 3]) for i in range(700, 706)]
    components.save_pretrained(tmp_path)
    again = load_codec(tmp_path)
    for a, b in zip(components.encode(images), again.encode(images)):
        assert np.array_equal(a.latents, b.latents)
    assert np.array_equal(again.decode(again.encode(images)), components.decode(components.encode(images)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backgrounds": -1}, "codec_options.backgrounds: -1"),
        ({"backgrounds": 8, "patch_size": 4, "components": 65}, r"components: 65 .* 4 \* patch_size\^2 \(64\)"),
        ({"patch_size": 4, "components": 49}, r"components: 49 .* 3 \* patch_size\^2 \(48\)"),
    ],
)
def test_wrong_layered_components(options, message):
    with pytest.raises(ConfigError, match=message):
        ImageComponentCodec.from_options(options)
