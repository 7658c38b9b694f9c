"""Actions: what is encoded comes back exactly, ranges are those of hand, wrong values say so in one sentence."""

import csv
import json
import re

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.codecs import load_codec
from plait.codecs.action_ids import ActionIdsCodec
from plait.codecs.actions import ActionsCodec
from plait.codecs.base import Encoded
from plait.common.errors import CheckpointError, ConfigError, DataError

NAN, INF = float("nan"), float("inf")


def fitted(media, **options) -> ActionsCodec:
    codec = ActionsCodec.from_options(options)
    codec.fit(media, minutes=0, seed=0, folder=ROOT, progress=lambda *_: None)
    return codec


def chunks(seed: int, *, count: int = 20, steps: int = 6, numbers: int = 3, missing: float = 0.0) -> list[np.ndarray]:
    """Return random chunks of numbers of other sizes; of the last number so many are missing."""
    rng = np.random.default_rng(seed)
    scale, centre = 10.0 ** rng.uniform(-2, 3, numbers), rng.normal(0, 10, numbers)
    media = [(rng.standard_normal((steps, numbers)) * scale + centre).astype(np.float32) for _ in range(count)]
    for item in media:
        item[rng.random(steps) < missing, -1] = NAN
    return media


def same(a: np.ndarray, b: np.ndarray, scale: float | np.ndarray) -> bool:
    """Say whether two items miss the same, and are equal but for float32's rounding at a scale."""
    return np.array_equal(np.isnan(a), np.isnan(b)) and bool((np.nan_to_num(abs(a - b)) <= 2e-6 * scale).all())


# --- continuous


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]), st.integers(1, 9), st.sampled_from([0.0, 0.3]))
def test_the_round_trip_is_exact(seed, per_token, numbers, missing):
    media = chunks(seed, numbers=numbers, missing=missing)
    codec = fitted(media, per_token=per_token, steps=6)
    encoded, tokens = codec.encode(media), 6 // per_token
    width = per_token * (numbers + (missing > 0))
    assert codec.latent_channels == width and codec.default_grid == (tokens,) and codec.dimensions == numbers
    assert all(e.latents.dtype == np.float32 and e.latents.shape == (tokens, width) for e in encoded)
    assert all(e.grid == (tokens,) for e in encoded)
    scale = np.nanmax(abs(np.concatenate(media)), axis=0)
    for a, b in zip(media, codec.decode(encoded), strict=True):
        assert b.dtype == np.float32 and same(a, b, scale)
    again = codec.encode(codec.decode(encoded))
    assert all(np.allclose(a.latents, e.latents, rtol=1e-4, atol=1e-4) for a, e in zip(again, encoded, strict=True))
    quality = codec.quality(media)
    assert quality["error"] < 1e-6 * scale.max() and 0.2 < quality["latent_std"] < 1.5


def test_ranges_by_hand():
    """0 to 100: quantiles 1 and 99 become -1 and 1, and what lies beyond is not clipped."""
    media = [np.arange(101, dtype=np.float32)[:, None]]
    (item,) = fitted(media).encode(media)
    assert item.latents[[1, 50, 99], 0].tolist() == [-1, 0, 1]
    assert item.latents[100, 0] == pytest.approx(50 / 49)
    extremes = fitted(media, quantile=0).encode(media)[0].latents
    assert extremes[[0, 50, 100], 0].tolist() == [-1, 0, 1]
    quarters = fitted(media, quantile=0.25).encode(media)[0].latents
    assert quarters[[25, 75, 100], 0].tolist() == [-1, 1, 2]


def test_what_is_missing_is_left_out_of_the_range():
    column = np.arange(101, dtype=np.float32)
    media = [np.stack([column, np.where(column < 50, NAN, column)], axis=1)]
    (item,) = fitted(media, quantile=0).encode(media)
    assert item.latents[49].tolist() == pytest.approx([-0.02, 0, -1])
    assert item.latents[[50, 75, 100]].tolist() == [[0, -1, 1], [0.5, 0, 1], [1, 1, 1]]


def test_a_constant_is_only_shifted():
    """Exactly or nearly so, near zero or far from it; what seldom moves is not constant."""
    rng = np.random.default_rng(0)
    still, jitter = np.full(500, 3.0), 1000 + rng.normal(0, 1e-4, 500)
    small, seldom = rng.normal(0, 1e-6, 500), np.where(np.arange(500) == 7, 40.0, 0)
    media = [np.stack([still, jitter, small, seldom], axis=1).astype(np.float32)]
    codec = fitted(media)
    latents = codec.encode(media)[0].latents
    assert not latents[:, 0].any() and abs(latents[:, 1]).max() < 1e-3 and abs(latents[:, 2]).max() < 1e-5
    assert latents[:8, 3].tolist() == [-1] * 7 + [1]
    moved = media[0] + np.array([0.5, 0.25, 0.125, 0], np.float32)
    assert np.allclose(codec.encode([moved])[0].latents - latents, [0.5, 0.25, 0.125, 0], atol=1e-4)
    assert same(codec.decode(codec.encode([moved]))[0], moved, np.array([3, 1000, 1, 40]))
    wider = fitted(media, least_range=1e-9).encode(media)[0].latents
    assert 0.3 < wider[:, 2].std() < 0.6


def test_a_token_is_steps_in_order():
    media = [np.array([[0, 10], [1, 11], [2, NAN], [3, 13]], np.float32)]
    codec = fitted(media, per_token=2, quantile=0)
    latents = codec.encode(media)[0].latents
    third = 1 / 3
    assert latents[0].tolist() == pytest.approx([-1, -1, 1, -third, -third, 1])
    assert latents[1].tolist() == pytest.approx([third, 0, -1, 1, 1, 1])
    swapped = codec.decode([Encoded(latents=latents[::-1], grid=(2,))])[0]
    assert swapped.tolist()[0][0] == pytest.approx(2) and np.isnan(swapped[0, 1])
    assert swapped[1:].tolist() == [[3, 13], [0, 10], [1, 11]]
    latents[1, 2] = 0.01  # what a model makes is present from 0 on
    assert codec.decode([Encoded(latents=latents, grid=(2,))])[0][2].tolist() == pytest.approx([2, 11.5])


def test_any_number_of_steps():
    media = [np.random.default_rng(n).standard_normal((n, 2)).astype(np.float32) for n in (1, 4, 9)]
    codec = fitted(media)
    assert codec.default_grid == () and [e.grid for e in codec.encode(media)] == [(1,), (4,), (9,)]
    assert all(same(a, b, 3) for a, b in zip(media, codec.decode(codec.encode(media)), strict=True))
    assert codec.encode([media[0][0]])[0].latents.shape == (1, 2)  # what is flat is one step


def test_before_it_is_fitted(tmp_path):
    codec = ActionsCodec.from_options({"dimensions": 2})
    assert not codec.is_fitted and codec.dimensions == 2 and codec.latent_channels == 0
    assert codec.read([[1, 2]], tmp_path).tolist() == [[1, 2]]
    with pytest.raises(AssertionError, match="fitted before"):
        codec.encode([np.zeros((1, 2), np.float32)])


@pytest.mark.parametrize(
    ("media", "sentence"),
    [
        ([], "actions: there is nothing to fit the codec on"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"item 1 has 4 numbers a step, item 0 has 3; set .*\.dimensions"),
        ([np.array([[0, NAN]]), np.array([[1, NAN]])], "number 1 is missing in all training items"),
    ],
)
def test_nothing_to_fit_on(media, sentence):
    with pytest.raises(DataError, match=sentence):
        fitted(media)


def test_what_was_never_missing_must_be_there():
    media = chunks(0, missing=0.5)
    item = media[0].copy()
    item[4, 1] = NAN
    codec = fitted(media)
    codec.key = "state"
    with pytest.raises(DataError, match="state: number 1 is missing in step 4, but never was in the data of the codec"):
        codec.encode([item])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"per_token": 0}, r"codec_options\.per_token: 0 is not allowed, .* at least 1"),
        ({"steps": -1}, r"codec_options\.steps: -1 is not allowed"),
        ({"steps": 5, "per_token": 2}, r"steps: 5 is not allowed, it must be 0, or a multiple of per_token \(2\)"),
        ({"dimensions": -1}, r"codec_options\.dimensions: -1"),
        ({"quantile": 0.5}, r"codec_options\.quantile: 0\.5 is not allowed, it must be in \[0, 0\.5\)"),
        ({"least_range": 0}, r"codec_options\.least_range: 0"),
        ({"dimension": 3}, "did you mean 'dimensions'"),
    ],
)
def test_wrong_options(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ActionsCodec.from_options(options)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([[0.1] * 7] * 2, "actions: 7 numbers a step are not allowed, the codec has 4"),
        ([[0.1] * 4] * 3, "actions: the number of steps is 3, it must be 2"),
        ([0.1] * 4, "actions: the number of steps is 1, it must be 2"),
        ([[1, 2, 3, 4], [1, 2]], "actions: step 1 has 2 numbers, it must have 4 as step 0, null where one is missing"),
        ([[], []], "actions: step 0 has 0 numbers, it must have at least 1"),
        (
            [[1, 2, 3, "4"]] * 2,
            r"actions: '4' \(step 0, number 3\) is not allowed, it must be a finite number, or null",
        ),
        ([[1, 2, 3, True]] * 2, r"actions: True \(step 0, number 3\)"),
        ([[1, 2, 3, [4]]] * 2, r"actions: \[4\] \(step 0, number 3\)"),
        ([[1, 2, 3, 4], [1, INF, 3, 4]], r"actions: inf \(step 1, number 1\) is not allowed"),
        ([[1, 2, NAN, 4]] * 2, r"actions: nan \(step 0, number 2\) is not allowed, .* or null where it is missing"),
        ([[1, 2, 3, 1e39]] * 2, r"actions: 1e\+39 \(step 0, number 3\)"),
        ([[1, 2, 3, 10**400]] * 2, r"actions: 1000.* \(step 0, number 3\)"),
        ([[1, 2, 3, 4], 5], r"actions: 5 \(step 1\) is not allowed, each step must be a list of numbers"),
        ([], r"actions: \[\] is not allowed, it must be a list of steps"),
        ({"a": 1}, r"actions: {'a': 1} is not allowed, it must be a list of steps, .* path of a \.npy or \.json file"),
        (0.5, "actions: 0.5 is not allowed"),
        (None, "actions: None is not allowed"),
        (np.full((2, 4), INF), r"actions: inf \(step 0, number 0\) is not allowed, it must be finite, or NaN"),
        (np.zeros((2, 4), bool), r"actions: an array of bool \[2, 4\] is not allowed, it must be float32 \[steps"),
        (np.zeros((2, 4, 1)), r"actions: an array of float64 \[2, 4, 1\] is not allowed"),
        (np.zeros((0, 4)), r"actions: an array of float64 \[0, 4\] is not allowed"),
        ("gone.npy", r"actions: there is no file '.*gone\.npy'"),
        ("[[1, 2], [3", r"actions: there is no file"),
        ("[[1, 2] 3]", r"actions: '\[\[1, 2\] 3\]' cannot be read"),
        ("wide.npy", r"actions: 7 numbers a step are not allowed, the codec has 4, in 'wide\.npy'"),
        ("object.npy", r"actions: 'object\.npy' cannot be read \(.*allow_pickle"),
        ("cut.npy", r"actions: 'cut\.npy' cannot be read"),
        ("head.npy", r"actions: 'head\.npy' cannot be read"),
        ("text.npy", r"actions: 'text\.npy' is not allowed, it must be the path of a \.npy or \.json file"),
        ("infinite.json", r"actions: inf \(step 0, number 0\) is not allowed, .*, in 'infinite\.json'"),
        ("cut.json", r"actions: 'cut\.json' cannot be read"),
        ("latin.json", r"actions: 'latin\.json' cannot be read"),
        ("deep.json", r"actions: 'deep\.json' cannot be read"),
        ("folder.json", r"actions: 'folder\.json' cannot be read"),
    ],
)
def test_wrong_values(tmp_path, value, sentence):
    np.save(tmp_path / "wide.npy", np.zeros((2, 7)))
    np.save(tmp_path / "object.npy", np.array([[None]]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "wide.npy").read_bytes()[:-5])
    (tmp_path / "head.npy").write_bytes((tmp_path / "wide.npy").read_bytes().replace(b"}", b"("))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "infinite.json").write_text("[[Infinity, 0, 0, 0], [0, 0, 0, 0]]")
    (tmp_path / "cut.json").write_text("[[1, 2")
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=sentence) as caught:
        ActionsCodec.from_options({"steps": 2, "dimensions": 4}).read(value, tmp_path)
    assert "\n" not in str(caught.value)


def test_steps_that_fill_no_token(tmp_path):
    with pytest.raises(DataError, match=r"the number of steps is 3, it must be a multiple of per_token \(2\)"):
        ActionsCodec.from_options({"per_token": 2}).read([[1], [2], [3]], tmp_path)


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        (Encoded(ids=np.zeros(3, np.int32)), "it must hold latents"),
        (Encoded(latents=np.zeros((6, 2), np.float32)), r"must be \[tokens, 3\]"),
        (Encoded(latents=np.full((6, 3), NAN, np.float32)), "not numbers"),
        (Encoded(latents=np.zeros((5, 3), np.float32)), "the number of tokens is 5, it must be 6"),
    ],
)
def test_latents_that_are_no_actions(item, sentence):
    with pytest.raises(DataError, match=sentence):
        fitted(chunks(0), steps=6).decode([item])


def test_values_of_a_manifest(tmp_path):
    """Lists, null, one flat step, arrays, files of either kind, JSON as text, and bytes with or without a name."""
    codec = ActionsCodec.from_options({})
    read = codec.read([[1, None], [0.25, -3]], tmp_path)
    assert read.dtype == np.float32 and same(read, np.array([[1, NAN], [0.25, -3]], np.float32), 1)
    assert codec.read([1, 2, 3], tmp_path).tolist() == [[1, 2, 3]]
    assert codec.read("[[1, 2], [3, 4]]", tmp_path).tolist() == [[1, 2], [3, 4]]
    assert codec.read(np.array([1, 2]), tmp_path).tolist() == [[1, 2]]
    np.save(tmp_path / "a.npy", np.array([[1, NAN]]))
    (tmp_path / "a.json").write_text("[[1, null]]")
    for name in ("a.npy", "a.json"):
        data = (tmp_path / name).read_bytes()
        for item in (codec.read(name, tmp_path), codec.read_bytes(data, name), codec.read_bytes(data)):
            assert same(item, np.array([[1, NAN]], np.float32), 1)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_files_come_back(tmp_path, missing):
    (item,) = chunks(3, count=1, missing=missing)
    codec = ActionsCodec.from_options({})
    for suffix in (codec.suffix, ".json"):
        codec.write(item, tmp_path / f"a{suffix}")
        assert np.array_equal(codec.read(f"a{suffix}", tmp_path), item, equal_nan=True)
    codec.write(item, tmp_path / "a.csv")
    head, *rows = list(csv.reader((tmp_path / "a.csv").open(encoding="utf-8")))
    assert head == ["0", "1", "2"]
    read = np.array([[float(cell or "nan") for cell in row] for row in rows], np.float32)
    assert np.array_equal(read, item, equal_nan=True)
    codec.write(np.array([[0.1]], np.float32), tmp_path / "short.json")
    assert (tmp_path / "short.json").read_text() == "[[0.1]]\n"


def test_it_is_saved_and_read_back(tmp_path):
    media = chunks(4, missing=0.2)
    codec = fitted(media, per_token=3, steps=6)
    codec.save_pretrained(tmp_path)
    again = load_codec(tmp_path, key="state")
    assert isinstance(again, ActionsCodec) and again.is_fitted and again.key == "state"
    assert again.latent_channels == codec.latent_channels == 12 and again.options == codec.options
    for a, b in zip(again.encode(media), codec.encode(media), strict=True):
        assert np.array_equal(a.latents, b.latents)
    assert np.array_equal(again.decode(again.encode(media))[0], codec.decode(codec.encode(media))[0], equal_nan=True)


def test_corrupt_folders_are_refused(tmp_path):
    codec = fitted(chunks(5))
    codec.save_pretrained(tmp_path)
    description = json.loads((tmp_path / "codec.json").read_text())

    def refuses(sentence, **changed):
        (tmp_path / "codec.json").write_text(json.dumps(description | changed))
        with pytest.raises(CheckpointError, match=sentence):
            load_codec(tmp_path)

    refuses("'centre' does not fit|'may_miss' does not fit|'scale' does not fit", dimensions=4)
    for value in (None, 0, 3.0, True, "3", 10**12):
        refuses(r"dimensions in '.*' is .*, it must be a whole number from 1 to", dimensions=value)
    refuses("dimensions in '.*' is 3, it must be 4", options=description["options"] | {"dimensions": 4})
    refuses(r"codec_options\.quantile: 2", options=description["options"] | {"quantile": 2})
    codec._fitted.scale[1] = 0
    codec.save_pretrained(tmp_path)
    refuses("the ranges in '.*' must be finite, and above 0")
    codec._fitted.scale[1] = NAN
    codec.save_pretrained(tmp_path)
    refuses("the ranges in '.*' must be finite, and above 0")
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    refuses("not a readable safetensors file")
    (tmp_path / "model.safetensors").unlink()
    refuses("there is no")


def drawn(media: np.ndarray) -> tuple[str, list[str]]:
    """Return the HTML of an item, and the paths of its lines."""
    shown = ActionsCodec.from_options({}).to_html(media)
    assert shown.startswith("<figure") and "nan" not in shown and "inf" not in shown and "<script" not in shown
    assert "http" not in shown and "url(" not in shown
    return shown, re.findall(r'<path d="(M[^"]*)" stroke="#', shown.split("<figcaption")[0])


def test_lines_are_drawn():
    shown, paths = drawn(np.array([[0, -1], [1, 1], [0.5, NAN]], np.float32))
    assert "3 steps of 2 numbers" in shown and "first" not in shown
    assert paths == ["M0.00 50.00h0L50.00 0.00L100.00 25.00", "M0.00 100.00h0L50.00 0.00"]
    shown, paths = drawn(np.array([[1.0], [NAN], [3], [NAN], [2], [4]], np.float32))
    assert "1 number<" in shown and [p.count("M") for p in paths] == [3] and paths[0].count("L") == 1


def test_many_numbers_are_the_first_sixteen():
    shown, paths = drawn(np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32))
    assert "8 steps of 40 numbers, first 16 of 40" in shown and len(paths) == 16
    assert len(shown) < 16_000


def test_one_step_is_bars_and_numbers():
    shown, paths = drawn(np.array([[0.5, -0.25, NAN]], np.float32))
    assert shown.count("<rect") == 2 and not paths and "1 step of 3 numbers" in shown
    assert "<b>0.5</b>" in shown and "<b>\u22120.25</b>" in shown and "<b>\u2013</b>" in shown


@pytest.mark.parametrize("media", [np.full((3, 2), NAN), np.zeros((2, 1)), np.full((1, 1), NAN), np.zeros((0, 3)),
                                   np.array([[INF], [1], [0]])])  # fmt: skip
def test_anything_can_be_drawn(media):
    drawn(media.astype(np.float32))


# --- discrete

NAMES = {"choices": ["left", "right", "forward"]}


def test_choices_come_back(tmp_path):
    codec = ActionIdsCodec.from_options(NAMES)
    media = [codec.read(value, tmp_path) for value in (["left", 2, "right"], "forward", 0, np.array([1, 1]))]
    encoded = codec.encode(media)
    assert codec.is_fitted and codec.vocab_size == 3 and codec.default_grid == () and codec.kind == "actions"
    assert [e.ids.tolist() for e in encoded] == [[0, 2, 1], [2], [0], [1, 1]]
    assert all(e.ids.dtype == np.int32 and e.grid == () for e in encoded)
    assert all(np.array_equal(a, b) for a, b in zip(media, codec.decode(encoded), strict=True))


def test_choices_without_names_are_numbers(tmp_path):
    codec = ActionIdsCodec.from_options({"choices": 4, "steps": 2})
    assert codec.vocab_size == 4 and codec.default_grid == (2,)
    assert codec.encode([codec.read([3, "0"], tmp_path)])[0].grid == (2,)
    assert ">3</span>" in codec.to_html(np.array([3, 0]))


def test_files_of_choices(tmp_path):
    codec = ActionIdsCodec.from_options(NAMES)
    codec.write(np.array([2, 0, 1]), tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == ["forward", "left", "right"]
    np.save(tmp_path / "a.npy", np.array([2, 0, 1], np.uint8))
    for name in ("a.json", "a.npy"):
        data = (tmp_path / name).read_bytes()
        for item in (codec.read(name, tmp_path), codec.read_bytes(data, name), codec.read_bytes(data)):
            assert item.tolist() == [2, 0, 1]
    assert codec.read('["forward", 0]', tmp_path).tolist() == [2, 0]
    codec.save_pretrained(tmp_path / "codec")
    again = load_codec(tmp_path / "codec")
    assert isinstance(again, ActionIdsCodec) and again.options == codec.options and again.names == codec.names
    (tmp_path / "codec" / "codec.json").write_text('{"codec": "action_ids", "options": {"choices": 1}}')
    with pytest.raises(CheckpointError, match=r"codec_options\.choices: 1"):
        load_codec(tmp_path / "codec")


def test_choices_are_shown_in_order_and_escaped():
    codec = ActionIdsCodec.from_options({"choices": ["<left>", "right"]})
    shown = codec.to_html(np.array([1, 0, 1]))
    assert re.findall(r">([^<>]+)</span>", shown) == ["right", "&lt;left&gt;", "right"]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            "lfet",
            r"actions: 'lfet' is not allowed, it must be one of left, right, forward, or .* 0 to 2; did .* 'left'",
        ),
        (["left", "jump"], "actions: 'jump' is not allowed"),
        (3, "actions: 3 is not allowed, .* or a whole number from 0 to 2"),
        ([-1], "actions: -1 is not allowed"),
        ([1.0], "actions: 1.0 is not allowed"),
        ([True], "actions: True is not allowed"),
        ([["left"]], r"actions: \['left'\] is not allowed"),
        (None, "actions: None is not allowed"),
        ([], "actions: the number of steps is 0, it must be at least 1"),
        (np.zeros(2), r"actions: an array of float64 \[2\] is not allowed, it must be whole numbers \[steps\]"),
        (np.zeros((2, 2), int), r"actions: an array of int64 \[2, 2\] is not allowed"),
        ("gone.npy", "actions: there is no file"),
        ("bad.json", r"actions: 'jump' is not allowed, .*, in 'bad\.json'"),
        ("bad", "actions: 'bad' is not allowed, it must be one of left"),
    ],
)
def test_wrong_choices(tmp_path, value, sentence):
    (tmp_path / "bad.json").write_text('["jump"]')
    with pytest.raises(DataError, match=sentence):
        ActionIdsCodec.from_options(NAMES).read(value, tmp_path)


def test_wrong_numbers_of_choices(tmp_path):
    with pytest.raises(DataError, match="actions: the number of steps is 1, it must be 2"):
        ActionIdsCodec.from_options(NAMES | {"steps": 2}).read("left", tmp_path)
    with pytest.raises(DataError, match="actions: 7 is not allowed"):
        ActionIdsCodec.from_options(NAMES).decode([Encoded(ids=np.array([7]))])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, r"codec_options\.choices: \[\] is not allowed, it must be names such as \[left, right\], or how many"),
        ({"choices": 1}, r"codec_options\.choices: 1 is not allowed"),
        ({"choices": 10**12}, r"codec_options\.choices: 1000000000000 is not allowed, .* 2 to 1,048,576"),
        ({"choices": True}, r"codec_options\.choices: True"),
        ({"choices": "left"}, r"codec_options\.choices: 'left'"),
        ({"choices": [1, 2]}, r"codec_options\.choices\[0\]: 1 is not allowed, it must be text"),
        ({"choices": ["a", "a"]}, r"codec_options\.choices: \['a', 'a'\] .* all different"),
        ({"choices": ["a", " "]}, r"codec_options\.choices: ' ' is not allowed, it must be a name"),
        ({"choices": ["a", "b.npy"]}, r"codec_options\.choices: 'b\.npy' .* not that of a file"),
        ({"choices": 2, "steps": -1}, r"codec_options\.steps: -1"),
    ],
)
def test_wrong_options_of_choices(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ActionIdsCodec.from_options(options)
