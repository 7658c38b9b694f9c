"""Motions: what is encoded comes back to a hundred-thousandth, any numbers become rigid bodies, wrong files say so."""

import numpy as np
import pytest

from plait.codecs import load_codec
from plait.codecs.base import Encoded
from plait.codecs.motions import (
    COLOUR,
    EDGES,
    EXTENTS,
    POSITION,
    SUNK,
    MotionCodec,
    corners,
    gaps,
    paths_svg,
    present,
    rigid,
    rotations,
)
from plait.common.errors import CheckpointError, ConfigError, DataError


def turned(rng: np.random.Generator) -> np.ndarray:
    """Return a random rotation [3, 3]."""
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return q * np.sign(np.linalg.det(q))


def motion(seed: int, bodies: int = 2, steps: int = 24) -> np.ndarray:
    """Return a motion of random places and rotations, of which the bodies after ``bodies`` are not there."""
    rng = np.random.default_rng(seed)
    numbers = np.zeros((steps, 2, 15), np.float32)
    for body in range(bodies):
        numbers[:, body, POSITION] = rng.uniform((-0.7, -0.7, 0.4), 0.7, (steps, 3))  # above the floor, however turned
        numbers[:, body, 3:9] = [turned(rng)[:, :2].T.ravel() for _ in range(steps)]
        numbers[:, body, EXTENTS] = rng.uniform(0.1, 0.45, 3)
        numbers[:, body, COLOUR] = np.random.default_rng([seed, body]).uniform(0, 1, 3)
    return numbers


def test_the_round_trip_is_exact():
    codec = MotionCodec.from_options({})
    media = [motion(seed, bodies=seed % 3) for seed in range(30)]
    encoded = codec.encode(media)
    assert codec.is_fitted and codec.latent_channels == 28 and codec.default_grid == (12, 2)
    assert all(e.latents.shape == (24, 28) and e.latents.dtype == np.float32 and e.grid == (12, 2) for e in encoded)
    for a, b in zip(media, codec.decode(encoded), strict=True):
        assert b.dtype == np.float32 and abs(a - b).max() < 1e-5
        assert not b[:, len(present(a)) :].any()
    quality = codec.quality(media)
    assert quality["error"] < 1e-6 and 0.3 < quality["latent_std"] < 3


def test_tokens_are_in_the_order_of_places_and_bodies_come_back_in_their_own():
    """Media that differ in which body is which have the same tokens but for the number that says it."""
    codec = MotionCodec.from_options({"bodies": 4})
    for seed in range(20):
        rng = np.random.default_rng(seed)
        item = np.concatenate([motion(seed), motion(seed + 100, bodies=rng.integers(3))], axis=1)
        order = rng.permutation(4)
        (a, b), exchanged = codec.encode([item, item[:, order]]), item[:, order]
        assert np.array_equal(a.latents[:, :-1], b.latents[:, :-1])
        assert abs(codec.decode([b])[0] - exchanged).max() < 1e-5
        tokens = a.latents.reshape(12, 4, -1)[0]
        places = tokens[: len(present(item)), -10:-7] * (0.125, 0.125, 0.085) + (0, 0, 0.2)
        assert np.all(np.diff(places @ (1, 0.6, 0.4)) > -1e-5)


def test_a_token_is_two_steps_of_a_body():
    codec, item = MotionCodec.from_options({}), motion(1)
    item[0, :, 0] = (-0.3, 0.3)
    changed = item.copy()
    changed[5, 1, 0] += 0.25
    difference = codec.encode([changed])[0].latents - codec.encode([item])[0].latents
    assert np.argwhere(abs(difference) > 1e-4).tolist() == [[2 * 2 + 1, 9]]
    assert difference[5, 9] == pytest.approx(0.25 / 0.15)


def test_any_numbers_become_rigid_bodies():
    codec, rng = MotionCodec.from_options({}), np.random.default_rng(0)
    noise = [rng.standard_normal((24, 28)).astype(np.float32) * scale for scale in (0, 1, 1, 30)]
    for item in codec.decode([Encoded(latents=n, grid=(12, 2)) for n in noise]):
        r = rotations(item)
        assert np.allclose(r @ r.swapaxes(-1, -2), np.eye(3), atol=1e-6) and np.allclose(np.linalg.det(r), 1)
        assert np.ptp(item[..., EXTENTS], axis=0).max() == 0
        assert np.allclose(rigid(item), item, atol=1e-6) and corners(item)[..., 2].min() > -SUNK - 1e-5
        side = corners(item)[:, :, [b for _, b in EDGES]] - corners(item)[:, :, [a for a, _ in EDGES]]
        lengths = np.linalg.norm(side, axis=-1).reshape(24, 2, 3, 4)
        assert np.allclose(lengths[..., ::-1, :], item[:, :, EXTENTS, None], atol=1e-5)


def test_what_is_small_is_not_there():
    item = motion(2)
    item[:, 1] = np.random.default_rng(0).normal(0, 0.01, (24, 15))
    assert (
        present(item) == [0] and not rigid(item)[:, 1].any() and np.allclose(rigid(item)[:, 0], item[:, 0], atol=1e-6)
    )


def test_solid_bodies_are_moved_apart_and_no_further():
    """Random boxes that overlap: apart by what was decoded, on the floor as before; those that do not stay."""
    codec = MotionCodec.from_options({"solid": True})
    for seed in range(20):
        item = motion(seed)
        item[..., :2] *= 0.3
        (made,) = codec.decode(codec.encode([item]))
        before, after = gaps(item), gaps(made)
        assert after.min() > -SUNK - 1e-5 and (before < -0.05).any()
        moved = np.linalg.norm((made - item)[..., POSITION], axis=-1).max(axis=1)
        assert np.all(moved <= 2 * (-before - SUNK).clip(min=0) + 1e-5)
        assert corners(made)[..., 2].min() >= min(corners(item)[..., 2].min(), -SUNK) - 1e-5
    stacked = np.zeros((24, 2, 15), np.float32)
    stacked[:] = (0, 0, 0.1, 1, 0, 0, 0, 1, 0, 0.2, 0.2, 0.2, 0.4, 0.5, 0.6)
    stacked[:, 0, 2] = 0.25
    (made,) = codec.decode(codec.encode([stacked]))
    assert made[0, 0, 2] == pytest.approx(0.3 - SUNK, abs=1e-5) and made[0, 1, 2] == pytest.approx(0.1, abs=1e-5)


def test_corners_by_hand():
    """A box of 2 by 4 by 6 that is turned a quarter about z is 4 wide and 2 deep."""
    item = np.zeros((1, 1, 15), np.float32)
    item[..., :] = (1, 2, 3, 0, 1, 0, -1, 0, 0, 2, 4, 6, 0, 0, 0)
    assert corners(item)[0, 0].min(0).tolist() == [-1, 1, 0] and corners(item)[0, 0].max(0).tolist() == [3, 3, 6]
    assert corners(item)[0, 0, 7].tolist() == [-1, 3, 6]  # its own (+, +, +)


def test_files_come_back_and_so_does_the_codec(tmp_path):
    codec, item = MotionCodec.from_options({"steps": 12, "per_token": 3}), motion(3, 1, steps=12)
    codec.write(item, tmp_path / "a.npz")
    assert np.array_equal(codec.read("a.npz", tmp_path), item)
    assert np.array_equal(codec.read_bytes((tmp_path / "a.npz").read_bytes(), "a.npz"), item)
    codec.save_pretrained(tmp_path / "codec")
    again = load_codec(tmp_path / "codec")
    assert isinstance(again, MotionCodec) and again.key == "motion" and again.default_grid == (4, 2)
    assert np.array_equal(again.encode([item])[0].latents, codec.encode([item])[0].latents)
    (tmp_path / "codec" / "codec.json").write_text('{"codec": "motion", "options": {"steps": 5}}')
    with pytest.raises(CheckpointError, match=r"codec_options\.steps: 5"):
        load_codec(tmp_path / "codec")


def test_paths_are_drawn():
    shown = paths_svg(motion(4))
    assert shown.startswith("<svg") and shown.count("<polyline") == 4 and "from above" in shown
    assert paths_svg(motion(4, 0)).count("<polyline") == 0
    assert MotionCodec.from_options({}).to_html(motion(4)).count("<polyline") == 4


def test_gaps_by_hand():
    """Boxes of side .2: apart along x, touching, overlapping; one turned by 45 degrees comes nearer with its edge."""
    item = np.zeros((4, 2, 15), np.float32)
    item[:] = (0, 0, 0, 1, 0, 0, 0, 1, 0, 0.2, 0.2, 0.2, 0.4, 0.5, 0.6)
    item[:, 1, 0] = (0.5, 0.2, 0.17, 0.3)
    item[3, 1, 3:9] = np.array([1, 1, 0, -1, 1, 0]) / np.sqrt(2)
    assert gaps(item) == pytest.approx([0.3, 0, -0.03, 0.2 - 0.1 * np.sqrt(2)], abs=1e-6)
    item[:, 1, 1] = 0.6  # apart along y more than along x, or nearly so
    assert gaps(item)[:3] == pytest.approx([0.4, 0.4, 0.4], abs=1e-6)


def changed(**numbers) -> np.ndarray:
    item = motion(5)
    for name, (place, value) in numbers.items():
        del name
        item[place] = value
    return item


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"cells": np.zeros(3)}, "'bad.npz' has no array 'motion' that can be read"),
        ({"motion": motion(5)[:20]}, r"float32 \[20, 2, 15\] is not allowed, it must be float32 \[24, 2, 15\]"),
        ({"motion": np.zeros((24, 2, 15), int)}, r"an array of int64 .* in 'bad.npz'"),
        ({"motion": changed(x=((3, 1, 0), np.nan))}, "not numbers .*in 'bad.npz'"),
        ({"motion": changed(x=((3, 1, 9), 0.9))}, r"extents of a body \(numbers 9 to 11\) .* the same at every step"),
        ({"motion": changed(x=((3, 1, 13), 0.0))}, r"colour of a body \(numbers 12 to 14\) .* the same at every step"),
        ({"motion": changed(x=((slice(None), 1, 13), 1.5))}, r"colour of a body .* numbers from 0 to 1"),
        ({"motion": changed(x=((slice(None), 1, EXTENTS), 0.01))}, "all its numbers must be 0"),
        ({"motion": changed(x=((3, 0, 4), 3))}, "columns of a rotation matrix"),
    ],
)
def test_broken_files(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message):
        MotionCodec.from_options({}).read("bad.npz", tmp_path)


def test_files_that_are_none(tmp_path):
    codec = MotionCodec.from_options({})
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "empty.npz").write_text("")
    pickled = np.array([{}], object)
    np.savez(tmp_path / "pickled.npz", motion=pickled)
    for value, message in [
        (3, "3 is not allowed, it must be the path of a file whose suffix is .npz"),
        ("a.npy", "'a.npy' is not allowed"),
        ("lost.npz", "'lost.npz' is not there"),
        ("text.npz", "'text.npz' has no array 'motion'"),
        ("empty.npz", "'empty.npz' has no array 'motion'"),
        ("pickled.npz", "'pickled.npz' has no array 'motion'"),
    ]:
        with pytest.raises(DataError, match=message):
            codec.read(value, tmp_path)


def test_tokens_that_are_none():
    codec, good = MotionCodec.from_options({}), np.zeros((24, 28), np.float32)
    for item, message in [
        (Encoded(ids=np.zeros(3, np.int32)), "it must hold latents"),
        (Encoded(latents=good[:, :20], grid=(12, 2)), r"must be \[tokens, 28\]"),
        (Encoded(latents=good[:6], grid=(6,)), r"the grid \(6,\) of 6 tokens is not allowed, it must be \(12, 2\)"),
        (Encoded(latents=good + np.inf, grid=(12, 2)), "not numbers"),
    ]:
        with pytest.raises(DataError, match=message):
            codec.decode([item])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 23}, r"codec_options.steps: 23 .* a multiple of per_token \(2\)"),
        ({"bodies": 0}, "codec_options.bodies: 0"),
        ({"per_token": 0}, "codec_options.per_token: 0"),
        ({"step": 3}, "did you mean 'steps'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        MotionCodec.from_options(options)
