"""Traffic: what is encoded comes back, any numbers become scenes that can be, wrong ones say so in one sentence."""

import json

import numpy as np
import pytest

from plait.codecs import load_codec
from plait.codecs.base import Encoded
from plait.codecs.traffic import (
    HEADING,
    KINDS,
    LENGTH,
    SPEED,
    TARGET_Y,
    WIDTH,
    TrafficCodec,
    X,
    Y,
    ordered,
    possible,
    present,
    road_svg,
)
from plait.common.errors import CheckpointError, ConfigError, DataError


def scene(seed: int, count: int = 7, vehicles: int = 16, lanes: int = 4) -> np.ndarray:
    """Return a scene of random vehicles in a random order after ego."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((vehicles, 8), np.float32)
    for k in range(count):
        lane, goal = rng.integers(lanes, size=2)
        sizes = [*KINDS.values()][0 if k == 0 else rng.integers(2)]
        rows[k] = (0 if k == 0 else rng.uniform(-60, 120), 4 * lane, rng.uniform(0, 30), rng.normal(0, 0.05), *sizes,
                   rng.uniform(0, 30), 4 * goal)  # fmt: skip
    return rows


def test_the_round_trip_is_exact():
    codec = TrafficCodec.from_options({})
    media = [scene(seed, count=1 + seed % 16) for seed in range(40)]
    encoded = codec.encode(media)
    assert codec.is_fitted and codec.latent_channels == 8 and codec.default_grid == (16,)
    assert all(e.latents.shape == (16, 8) and e.latents.dtype == np.float32 and e.grid == (16,) for e in encoded)
    for item, again in zip(media, codec.decode(encoded), strict=True):
        assert again.dtype == np.float32 and abs(again - ordered(item)).max() < 1e-4
    quality = codec.quality(media)
    assert quality["error"] < 1e-5 and 0.5 < quality["latent_std"] < 2


def test_a_scene_has_one_order():
    codec, item = TrafficCodec.from_options({}), scene(1)
    turned = np.concatenate([item[:1], item[1:][::-1]])
    assert np.array_equal(codec.encode([item])[0].latents, codec.encode([turned])[0].latents)
    places = ordered(turned)
    assert (places[0] == item[0]).all() and (np.diff(places[1:7, X]) >= 0).all() and not places[7:].any()


def test_any_numbers_become_scenes_that_can_be():
    codec, rng = TrafficCodec.from_options({}), np.random.default_rng(0)
    noise = [rng.standard_normal((16, 8)).astype(np.float32) * scale for scale in (0, 1, 1, 30)]
    for item in codec.decode([Encoded(latents=n, grid=(16,)) for n in noise]):
        there = item[present(item)]
        assert present(item)[0] and item[0, X] == 0 and np.allclose(possible(item, 4), item)
        assert {tuple(row) for row in there[:, [LENGTH, WIDTH]].tolist()} <= {*KINDS.values()}
        assert there[:, Y].min() >= 0 and there[:, Y].max() <= 12 and not (there[:, TARGET_Y] % 4).any()
        assert there[:, SPEED].min() >= 0 and abs(there[:, HEADING]).max() <= 0.6
        assert not item[~present(item)].any()
        assert np.allclose(codec.decode(codec.encode([item]))[0], item, atol=1e-4)


def test_files_come_back_and_so_does_the_codec(tmp_path):
    codec, item = TrafficCodec.from_options({"vehicles": 9, "lanes": 3}), scene(3, 5, vehicles=9, lanes=3)
    for name in ("a.npz", "a.json"):
        codec.write(item, tmp_path / name)
        assert np.array_equal(codec.read(name, tmp_path), item)
        assert np.array_equal(codec.read_bytes((tmp_path / name).read_bytes(), name), item)
    assert np.array_equal(codec.read((tmp_path / "a.json").read_text(), tmp_path), item)
    codec.save_pretrained(tmp_path / "codec")
    again = load_codec(tmp_path / "codec")
    assert isinstance(again, TrafficCodec) and again.key == "traffic" and again.default_grid == (9,)
    assert np.array_equal(again.encode([item])[0].latents, codec.encode([item])[0].latents)
    (tmp_path / "codec" / "codec.json").write_text('{"codec": "traffic", "options": {"lanes": 0}}')
    with pytest.raises(CheckpointError, match=r"codec_options\.lanes: 0"):
        load_codec(tmp_path / "codec")


def test_a_list_of_vehicles_may_say_little(tmp_path):
    codec = TrafficCodec.from_options({})
    said = [{"y": 4, "speed": 25}, {"x": 40, "y": 8, "speed": 12, "length": 10, "width": 2.5, "target_y": 4}]
    item = codec.read(said, tmp_path)
    assert item[0].tolist() == [0, 4, 25, 0, 5, 2, 25, 4] and item[1].tolist() == [40, 8, 12, 0, 10, 2.5, 12, 4]
    assert not item[2:].any() and np.array_equal(codec.read(item[:2].tolist(), tmp_path), item)
    assert np.array_equal(codec.read(json.dumps(said), tmp_path), item)


def test_the_road_is_drawn():
    item = scene(4)
    item[1, TARGET_Y] = (item[1, Y] + 4) % 16  # goes for another lane
    shown = TrafficCodec.from_options({}).to_html(item)
    assert shown.startswith("<svg") and shown.count("<text") == 7 + 1 and "7 vehicles" in shown
    assert shown.count('stroke-dasharray="10 14"') == 3 and "#fb923c" in shown
    assert road_svg(scene(4, 1), 2).count("<text") == 2


def changed(place, value) -> np.ndarray:
    item = scene(5)
    item[place] = value
    return item


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (changed((3, 0), np.nan), "traffic: values that are not numbers"),
        (scene(5, vehicles=12), r"float32 \[12, 8\] is not allowed, it must be float32 \[16, 8\]"),
        (np.zeros((16, 8), int), "an array of int64"),
        (changed((0, 0), 3), "the first vehicle is ego, so it must be there .* at x 0"),
        (changed((0, 4), 0), "the first vehicle is ego"),
        (changed((9, 0), 1), "a vehicle of length 0 is not there, so all its numbers must be 0"),
        (changed((2, 1), 14.5), "must be on the road, from -2 to 14 m"),
        (changed((2, 7), -3), "must be on the road"),
    ],
)
def test_scenes_that_are_none(tmp_path, item, message):
    codec = TrafficCodec.from_options({})
    with pytest.raises(DataError, match=message):
        codec.encode([item])
    np.savez(tmp_path / "bad.npz", traffic=item)
    with pytest.raises(DataError, match=f"{message}.*, in 'bad.npz'"):
        codec.read("bad.npz", tmp_path)


def test_values_that_are_none(tmp_path):
    codec = TrafficCodec.from_options({})
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "text.json").write_text("{,}")
    np.savez(tmp_path / "pickled.npz", traffic=np.array([{}], object))
    for value, message in [
        (3, "3 is not allowed, it must be a list of 1 to 16 vehicles, ego first"),
        ([], "0 vehicles is not allowed"),
        ([[0] * 8] * 17, "17 vehicles is not allowed"),
        ([[0] * 7], r"\[0, 0, 0, 0, 0, 0, 0\] is not allowed, a vehicle must be 8 numbers, or some by name"),
        ([{"y": "left"}], "a vehicle must be 8 numbers"),
        ([{"sped": 3}], "a vehicle: unknown name 'sped', .* did you mean 'speed'"),
        ([{"y": 20}], "must be on the road"),
        ("[1, 2", "the list is not JSON"),
        ("a.npy", "'a.npy' is not allowed, it must be a list, or the path of an .npz or .json file"),
        ("lost.npz", "'lost.npz' is not there"),
        ("text.npz", "'text.npz' has no array 'traffic'"),
        ("text.json", "'text.json' is not JSON"),
        ("pickled.npz", "'pickled.npz' has no array 'traffic'"),
    ]:
        with pytest.raises(DataError, match=message):
            codec.read(value, tmp_path)


def test_tokens_that_are_none():
    codec, good = TrafficCodec.from_options({}), np.zeros((16, 8), np.float32)
    for item, message in [
        (Encoded(ids=np.zeros(3, np.int32)), "it must hold latents"),
        (Encoded(latents=good[:, :5], grid=(16,)), r"must be \[tokens, 8\]"),
        (Encoded(latents=good[:6], grid=(6,)), r"the grid \(6,\) of 6 tokens is not allowed, it must be \(16,\)"),
        (Encoded(latents=good + np.inf, grid=(16,)), "not numbers"),
    ]:
        with pytest.raises(DataError, match=message):
            codec.decode([item])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"vehicles": 0}, "codec_options.vehicles: 0"), ({"lanes": 0}, "codec_options.lanes: 0"),
     ({"lane": 3}, "did you mean 'lanes'")],
)  # fmt: skip
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        TrafficCodec.from_options(options)
