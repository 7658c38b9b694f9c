"""The judge of motions: a model that copies the truth reaches the ceiling, others the floor, of every figure."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from plait.batch.documents import Document
from plait.codecs.motions import POSITION, MotionCodec, MotionOptions
from plait.config.run import EvaluateConfig
from plait.evaluate.cache import Cache
from plait.evaluate.held import Held
from plait.evaluate.judge import judge_class
from plait.worlds.events import EVENTS, event_of, happening
from plait.worlds.motion_judge import MotionJudge, constant, still
from plait.worlds.physics import Body, simulate

pytest.importorskip("mujoco")
pytest.importorskip("scipy")

SIDES = (0.2, 0.2, 0.2)


def box(x: float = 0.0, z: float = 0.1, **how) -> Body:
    return Body(SIDES, (x, 0, z), **how)


SCENES = {
    "stays": [box()],
    "slides right": [box(velocity=(1.5, 0, 0))],
    "slides left": [box(velocity=(-1.5, 0, 0))],
    "falls": [box(z=0.5)],
    "spins left": [box(spin=(0, 0, 14))],
    "jumps": [box(velocity=(0, 0, 2))],
    "hits: slides": [box(-0.4, velocity=(2.2, 0, 0)), box(-0.05)],
    "falls onto": [box(z=0.5), box()],
}
REAL = [simulate(bodies) for bodies in SCENES.values()]
METAS = [{"event": event} for event in SCENES]


class Truths:
    chances: ClassVar = {"event": 1 / len(EVENTS)}

    def item_scores(self, kind, items, metas):
        assert kind == "motion"
        return {"event": [event_of(happening(m)) == meta["event"] for m, meta in zip(items, metas, strict=True)]}


class Documents(Held):
    """Held-out motions, and training's, which are others."""

    def raw(self, places):
        return [REAL[i] for i in places]

    def nearest(self, places):
        return [REAL[i] for i in places]

    @property
    def truths(self):
        return TRUTHS["them"]


TRUTHS = {"them": Truths()}


def held() -> Documents:
    first = [simulate([box(x, velocity=(0, v, 0))]) for x in (-0.3, 0.3) for v in (1.0, 2.0)]
    training = SimpleNamespace(first=lambda key: iter(first), config=SimpleNamespace(evaluate=EvaluateConfig()))
    documents = [Document([], meta=meta, index=i) for i, meta in enumerate(METAS)]
    return Documents(("text", "motion"), "seen", MotionCodec(MotionOptions()), documents, [""] * len(REAL), None,
                     training, Cache(None, {}))  # fmt: skip


def judged(made, documents=None) -> dict[str, float]:
    return MotionJudge(EvaluateConfig()).measure(made, documents or held()).figures()


@pytest.fixture(scope="module")
def best() -> dict[str, float]:
    return judged(REAL)


def test_the_scenes_are_what_they_are_called():
    assert [event_of(happening(motion)) for motion in REAL] == list(SCENES)


def test_motions_that_are_the_truth_reach_the_ceiling(best):
    sure = ["event_accuracy", "event_originals", "event_codec", "event_nearest"]
    assert {name: best[name] for name in sure} == dict.fromkeys(sure, 1.0)
    assert best["event_shuffled"] == 0 and best["event_chance"] == 1 / len(EVENTS)
    for name in ("error", "ends", "error_second"):
        assert best[name] == 0 and best[f"{name}_codec"] < 1e-3 and best[f"{name}_nearest"] == 0
        assert min(best[f"{name}_{guess}"] for guess in ("still", "constant", "shuffled")) > 0.02
        assert f"{name}_real" not in best
    assert best["error_second_count"] == 1 and best["error_count"] == len(REAL)  # one of them is hit
    assert best["penetration"] == best["penetration_real"] < 0.02
    assert best["again"] == best["again_real"] < 0.02
    measures = {name for name in best if f"{name}_count" in best}
    assert measures == {
        "event_accuracy",
        "error",
        "ends",
        "error_second",
        "penetration",
        "again",
        "neighbour",
        "copied",
    }
    assert all(best[f"{name}_low"] <= best[name] <= best[f"{name}_high"] + 1e-9 for name in measures)


def test_motions_of_other_documents_and_guesses_have_the_figures_beside(best):
    made = {"shuffled": np.roll(REAL, 1, axis=0), "still": map(still, REAL), "constant": map(constant, REAL)}
    for name, motions in made.items():
        figures = judged(list(motions))
        for figure in ("error", "ends", "error_second"):
            assert figures[figure] == pytest.approx(best[f"{figure}_{name}"])
        assert figures["event_accuracy"] == {"shuffled": 0, "still": 1 / 8}.get(name, figures["event_accuracy"])


def test_errors_by_hand():
    moved = np.array(REAL)
    moved[:, :, 0, 0] += 0.3  # of two bodies in two documents it is the first
    moved[:, -1, 0, 1] += 0.4
    figures = judged(list(moved))
    shares = np.array([1] * 6 + [0.5] * 2)
    assert figures["ends"] == pytest.approx((0.5 * shares).mean())
    assert figures["error"] == pytest.approx(((0.3 * 23 + 0.5) / 24 * shares).mean())
    assert figures["error_second"] == 0


def test_what_physics_does_not_allow():
    sunk, floating = np.array(REAL), np.array(REAL)
    sunk[:, :, :, 2] -= 0.1
    floating[:, :, :, 2] += 0.4
    figures = judged(list(sunk))
    assert figures["penetration"] == pytest.approx(0.1, abs=0.01)
    figures = judged([still(motion) for motion in floating])
    assert figures["again"] > 0.2 and figures["penetration"] < 0.01
    assert figures["again_real"] < 0.02


def test_nothing_at_all_is_no_motion():
    figures = judged([np.zeros_like(motion) for motion in REAL])
    assert "again" not in figures and figures["penetration"] == 0 and figures["error"] > 0.1
    assert figures["event_accuracy"] == 1 / 8  # a motion without a body is one in which all stays


def test_training_motions_that_a_model_repeats_are_seen(best):
    documents = held()
    figures = judged([*documents.training.first("motion")] * 2, documents)
    assert figures["neighbour"] == pytest.approx(1) and figures["copied"] == 1 > best["copied_real"]


def test_what_no_model_changes_is_judged_once(monkeypatch, best):
    from plait.worlds import motion_judge

    calls, again, documents = [], motion_judge.again, held()
    monkeypatch.setattr(motion_judge, "again", lambda motion: calls.append(1) or again(motion))
    assert judged(REAL, documents) == judged(REAL, documents) == best
    assert len(calls) == (3 + 1 + 1) * len(REAL)


def test_motions_of_a_user_of_which_nothing_is_known(monkeypatch, best):
    monkeypatch.setitem(TRUTHS, "them", None)
    figures = judged(REAL)
    assert not any(name.startswith("event") for name in figures)
    assert {name: best[name] for name in figures} == figures


def test_guesses():
    motion = REAL[1]
    assert (still(motion) == motion[0]).all()
    goes_on = constant(motion)
    step = motion[1, 0, POSITION] - motion[0, 0, POSITION]
    assert np.allclose(np.diff(goes_on[:, 0, POSITION], axis=0), step, atol=1e-6)
    assert (goes_on[..., 3:] == motion[0, :, 3:]).all() and (goes_on[0] == motion[0]).all()
    assert not goes_on[:, 1].any()


def test_the_codec_names_this_judge():
    assert judge_class(MotionCodec) is MotionJudge
