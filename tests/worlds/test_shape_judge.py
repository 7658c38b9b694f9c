"""The judge of scenes: models that copy the truth reach the ceiling, others the floor, of every figure."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from plait.batch.documents import Document
from plait.common.progress import QuietProgress
from plait.common.randomness import generator
from plait.config.run import EvaluateConfig
from plait.evaluate.cache import Cache
from plait.evaluate.held import Held
from plait.evaluate.judge import judge_class
from plait.worlds import shape_judge, shape_sets
from plait.worlds.shape_judge import SHAPE, ShapeJudge, in_turns, shapes
from plait.worlds.shape_sets import chamfer, overlap, set_figures, shapes_of

pytest.importorskip("mujoco")
pytest.importorskip("scipy")

SIZE, THINGS, COLOURS = 16, [f"thing {k}" for k in range(24)], {"red": (200, 0, 0), "blue": (0, 0, 200)}


def thing(number: int, colour: str = "red", shift: int = 0) -> np.ndarray:
    """Return cells of three blocks on top of each other, the lowest the largest, and each above the one below."""
    rng, cells = generator(0, "test things", item=number), np.zeros((SIZE, SIZE, SIZE, 4), np.uint8)
    low, widths = 0, np.sort(rng.integers(2, 7, (3, 2)), axis=0)[::-1]
    for half, height in zip(widths, rng.integers(1, 6, 3), strict=True):
        span = [slice(8 - n + shift, 8 + n + shift) for n in half]
        cells[span[0], span[1], low : low + height] = (*COLOURS[colour], 255)
        low += height
    return cells


class Truths:
    """Documents 0, 10, 20 and so on show two things."""

    chances: ClassVar = {"object": 0.9, "colour": 0.5}

    def thing(self, meta):
        return meta["thing"]

    def things(self):
        return THINGS

    def reference(self, kind, name, size):
        assert (kind, size) == ("scene3d", SIZE)
        return thing(THINGS.index(name))

    def item_scores(self, kind, items, metas):
        filled = [item[item[..., 3] > 0] for item in items]
        reds = [bool(len(f) and (f[:, 0] > f[:, 2]).mean() > 0.5) for f in filled]
        known = [meta["colour"] == "red" if meta["thing"] else None for meta in metas]
        return {"colour": [k if k is None else k == red for k, red in zip(known, reds, strict=True)]}


class Documents(Held):
    """Held-out scenes, and training's, which are others."""

    has_nearest: ClassVar = False

    def raw(self, places):
        return [REAL[i] for i in places]

    def nearest(self, places):
        return [REAL[i] for i in places] if self.has_nearest else []

    @property
    def truths(self):
        return TRUTHS["them"]


TRUTHS = {"them": Truths()}
METAS = [{"thing": THINGS[i] if i % 10 else "", "colour": ["red", "blue"][i % 2]} for i in range(24)]
REAL = [thing(i, meta["colour"], shift=i % 2) for i, meta in enumerate(METAS)]


def held(count: int = 24) -> Documents:
    codec = SimpleNamespace(kind="scene3d", key="scene3d", encode=list, decode=list)
    first = [thing(100 + k) for k in range(24)]
    training = SimpleNamespace(first=lambda key: iter(first),
                               config=SimpleNamespace(evaluate=EvaluateConfig()))  # fmt: skip
    documents = [Document([], meta=meta, index=i) for i, meta in enumerate(METAS[:count])]
    library = SimpleNamespace(progress=QuietProgress())
    return Documents(("text", "scene3d"), "seen", codec, documents, [""] * count, library, training, Cache(None, {}))


def judged(made, documents=None) -> dict[str, float]:
    return ShapeJudge(EvaluateConfig()).measure(made, documents or held()).figures()


@pytest.fixture(scope="module")
def best() -> dict[str, float]:
    return judged(REAL)


def noise(share: float) -> list[np.ndarray]:
    rng, scenes = generator(0, "test noise"), []
    for _ in REAL:
        cells = rng.integers(0, 256, (SIZE, SIZE, SIZE, 4)).astype(np.uint8)
        cells[..., 3] = 255 * (rng.random((SIZE,) * 3) < share)
        scenes.append(cells)
    return scenes


def test_scenes_that_are_the_truth_reach_the_ceiling(best):
    sure = ["object_accuracy", "object_originals", "object_codec", "colour_accuracy", "colour_codec", "match",
            "match_codec", "stands", "stands_real", "stands_codec"]  # fmt: skip
    assert {name: best[name] for name in sure} == dict.fromkeys(sure, 1.0)
    assert best["loose_voxels"] == best["loose_voxels_real"] == 0 and best["match_shuffled"] < 0.7
    assert best["object_accuracy_count"] == sum(bool(meta["thing"]) for meta in METAS) == 21
    assert best["object_chance"] == 1 / len(THINGS) and best["colour_chance"] == 0.5
    assert best["neighbour"] == best["neighbour_real"] and best["neighbour_among"] == 24
    for kind in ("chamfer", "iou"):
        assert best[f"one_nna_{kind}"] == 0.5 and best[f"coverage_{kind}"] > 0.4
        assert best[f"mmd_{kind}"] == pytest.approx(best[f"mmd_{kind}_codec"])
    measures = {name for name in best if f"{name}_count" in best}
    assert (
        all(best[f"{name}_low"] <= best[name] <= best[f"{name}_high"] + 1e-9 for name in measures)
        and len(measures) == 13
    )


def test_scenes_of_other_documents_are_none_of_what_was_asked_for(best):
    figures = judged([*REAL[1:], REAL[0]])
    assert figures["object_accuracy"] == 0 and figures["colour_accuracy"] == 0 and figures["stands"] == 1
    assert figures["match"] == pytest.approx(best["match_shuffled"])


def test_noise_lies_apart(best, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shape_judge, "stands", lambda cells: False)  # a simulation of a thousand boxes each
        figures = judged(noise(0.5))
    assert figures["object_accuracy"] < 0.4 and figures["match"] < 0.3
    for kind in ("chamfer", "iou"):
        assert figures[f"one_nna_{kind}"] > 0.9 and figures[f"coverage_{kind}"] < 0.3
        assert figures[f"mmd_{kind}"] > 1.5 * best[f"mmd_{kind}"]
    empty = judged([np.zeros_like(scene) for scene in REAL])
    assert empty["object_accuracy"] == empty["stands"] == empty["match"] == 0
    assert empty["mmd_chamfer"] == pytest.approx(3**0.5) and empty["mmd_iou"] == 1


def test_what_falls_and_what_is_loose():
    leaning = np.zeros_like(REAL[0])
    leaning[7:9, 7:9, :12], leaning[7:15, 7:9, 12:] = 255, 255
    dusty = REAL[1].copy()
    dusty[0, 0, 14:] = 255
    figures = judged([leaning, dusty] * 12)
    assert figures["stands"] == 0.5 and figures["stands_count"] == 24  # the dust leaves the other where it is
    dust = 2 / (dusty[..., 3] > 0).sum()
    assert figures["loose_voxels"] == pytest.approx(dust / 2)
    figures = judged(noise(0.05))
    assert figures["stands"] == 0 and figures["loose_voxels"] > 0.7


def test_training_scenes_that_a_model_repeats_are_seen(best):
    figures = judged([thing(100 + k) for k in range(24)])
    assert figures["neighbour"] == pytest.approx(1) and figures["copied"] == 1 > best["copied_real"]


def test_things_are_named_whatever_their_size_turn_and_place():
    # steps of 90 degrees, twice as large, and with 5% of the cells flipped
    known = shapes([thing(k) for k in range(12)])
    turned = [np.rot90(thing(k), k % 4, axes=(0, 1)) for k in range(12)]
    large = [scene.repeat(2, 0).repeat(2, 1).repeat(2, 2) for scene in turned]
    assert known.shape == (12, SHAPE**3)
    for scenes in (turned, large):
        assert in_turns(shapes(scenes), known).argmax(1).tolist() == list(range(12))
    rng = generator(0, "test flips")
    for scene in large:
        scene[..., 3] ^= (rng.random(scene.shape[:3]) < 0.05).astype(np.uint8) * 255
    assert np.mean(in_turns(shapes(large), known).argmax(1) == np.arange(12)) > 0.7


def test_more_things_than_are_compared(monkeypatch):
    monkeypatch.setattr(shape_judge, "NUM_THINGS", 3)
    figures = judged(REAL)
    assert figures["object_accuracy"] == 1 and figures["object_chance"] == 1 / 3


def test_scenes_of_a_user_of_which_nothing_is_known(monkeypatch, best):
    monkeypatch.setitem(TRUTHS, "them", None)
    figures = judged(REAL)
    assert not any(name.startswith(("object", "colour")) for name in figures)
    assert {name: best[name] for name in figures} == figures


def test_few_scenes_are_no_set(monkeypatch):
    said = []
    monkeypatch.setattr(QuietProgress, "print", lambda self, line: said.append(line), raising=False)
    figures = judged(REAL[:5], held(5))
    assert figures["match"] == 1 and not any(name.startswith(("mmd", "coverage", "one_nna")) for name in figures)
    assert said == ["evaluate: 5 scenes of 'scene3d' are too few to be compared as a set with real ones, it needs 10 "
                    "(evaluate.items, and documents of the split 'seen')"]  # fmt: skip


def test_what_no_model_changes_is_judged_once(monkeypatch):
    judged_ones, documents, stands = [], held(), shape_judge.stands
    monkeypatch.setattr(shape_judge, "stands", lambda cells: judged_ones.append(1) or stands(cells))
    documents.has_nearest = True
    figures = judged(REAL, documents)
    assert len(judged_ones) == 4 * 24 and figures["object_nearest"] == figures["match_nearest"] == 1
    assert judged(REAL, documents) == figures and len(judged_ones) == 5 * 24


def test_the_codec_names_this_judge():
    from plait.codecs.voxels import VoxelCodec

    assert judge_class(VoxelCodec) is ShapeJudge


# distances


def test_chamfer_is_the_mean_distance_to_the_nearest_outer_cell():
    from scipy.spatial import cKDTree

    scenes = np.stack([scene[..., 3] > 0 for scene in REAL[:4]])
    made = chamfer(shapes_of(scenes[:2]), shapes_of(scenes[2:]))
    outer = [np.argwhere(cells.reshape(scenes.shape[1:])) for cells in shapes_of(scenes).outer]
    for i in (0, 1):
        for j in (2, 3):
            there, back = (cKDTree(b).query(a)[0].mean() for a, b in ((outer[i], outer[j]), (outer[j], outer[i])))
            assert made[i, j - 2] == pytest.approx((there + back) / 2 / SIZE, rel=1e-4)
    two = np.zeros((2, 8, 8, 8), bool)
    two[0, 0, 0, 0] = two[1, 4, 0, 0] = True
    assert chamfer(shapes_of(two), shapes_of(two)).tolist() == [[0, 0.5], [0.5, 0]]
    nothing = shapes_of(np.zeros_like(two))
    assert chamfer(nothing, nothing).max() == 0 and chamfer(nothing, shapes_of(two)).min() == pytest.approx(3**0.5)


def test_overlap_by_hand():
    cells = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
    assert overlap(cells, cells).tolist() == [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 1]]


def test_figures_of_sets_by_hand(monkeypatch):
    """Of cells along one line: real ones at 0, 10 and 20; made ones at 1, 11 and 12."""
    monkeypatch.setattr(shape_sets, "DISTANCES", {"chamfer": chamfer})
    real, made = np.zeros((3, 32, 32, 32), bool), np.zeros((3, 32, 32, 32), bool)
    for row, (a, b) in enumerate(zip((0, 10, 20), (11, 12, 1), strict=True)):
        real[row, a, 0, 0] = made[row, b, 0, 0] = True
    measures, beside = set_figures({"": made, "far": np.roll(made, 16, axis=2)}, real)
    # a row is never compared with itself: the nearest to 0, 10 and 20 are 12 (not 11), 11 and 12
    distances = [1, 1, 8]
    assert measures["mmd_chamfer"].value == pytest.approx(np.mean(distances) / 32)
    assert measures["coverage_chamfer"].value == 1 and measures["coverage_chamfer"].items is None
    # 12 is next to 11, and 11 as near to 12 as to 10; all others lie next to one of the other kind
    assert measures["one_nna_chamfer"].value == pytest.approx(1.5 / 6) and measures["one_nna_chamfer"].count == 6
    assert beside["one_nna_chamfer_far"] == 1
