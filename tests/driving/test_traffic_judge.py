"""The judge of traffic: the truth reaches the ceiling of every figure, others the floor; and a model's drives."""

from types import SimpleNamespace

import numpy as np
import pytest

from plait.batch.documents import Document
from plait.codecs.traffic import TrafficCodec
from plait.common.progress import QuietProgress
from plait.config.run import EvaluateConfig
from plait.driving.drivers import IDLE, SLOWER
from plait.driving.judge import TrafficJudge
from plait.driving.trials import DrivingTrials
from plait.driving.truths import DrivingTruths, meta_of
from plait.driving.world import World
from plait.evaluate.cache import Cache
from plait.evaluate.held import Held
from plait.evaluate.judge import judge_class

pytest.importorskip("highway_env")
pytest.importorskip("scipy")

WORLD = World(3)


@pytest.fixture(scope="module")
def drawn():
    scenes = [WORLD.scene("seen", i) for i in range(14)]
    return [s for s in scenes if s.happening.is_hard][:5]


@pytest.fixture(scope="module")
def held(drawn):
    class Documents(Held):
        def raw(self, places):
            return [drawn[i].traffic for i in places]

        def nearest(self, places):
            return self.raw(places)

        @property
        def truths(self):
            return DrivingTruths()

    first = [WORLD.scene("train", i).traffic for i in range(4)]
    training = SimpleNamespace(first=lambda key: iter(first), config=SimpleNamespace(evaluate=EvaluateConfig()))
    documents = [Document([], meta=meta_of(s.happening), index=i) for i, s in enumerate(drawn)]
    return Documents(("text", "traffic"), "seen", TrafficCodec.from_options({}), documents, [""] * len(drawn), None,
                     training, Cache(None, {}))  # fmt: skip


def test_the_truth_reaches_the_ceiling(drawn, held):
    real = [s.traffic for s in drawn]
    best = TrafficJudge(EvaluateConfig()).measure(real, held).figures()
    sure = ["event_accuracy", "event_originals", "event_codec", "event_nearest", "lane_accuracy", "ahead_accuracy",
            "no_overlap", "no_overlap_real", "no_collision", "idle_crash_rate", "idle_crash_rate_real"]  # fmt: skip
    assert {name: best[name] for name in sure} == dict.fromkeys(sure, 1.0)
    assert best["idm_crash_rate"] == best["idm_crash_rate_real"] == 0 and best["idm_speed"] == best["idm_speed_real"]
    assert best["idm_speed_codec"] == pytest.approx(best["idm_speed_real"], abs=0.2)
    assert best["event_shuffled"] < 1 and best["ahead_chance"] == 1 / 9 and best["match"] == pytest.approx(1)
    assert best["event_accuracy_low"] > 0.5 and best["event_accuracy_count"] == 5  # Wilson's


def test_other_scenes_and_noise_have_the_figures_beside(drawn, held):
    judge, real = TrafficJudge(EvaluateConfig()), [s.traffic for s in drawn]
    others = judge.measure([*real[1:], real[0]], held).figures()
    assert others["event_accuracy"] == others["event_shuffled"] and others["no_overlap"] == 1
    piled = [scene.copy() for scene in real]
    for scene in piled:
        scene[1:, :2] = np.where(scene[1:, 4:5] > 0, (3.0, scene[0, 1]), 0)
    figures = judge.measure(piled, held).figures()
    assert figures["no_overlap"] == figures["no_collision"] == 0 and figures["idm_crash_rate"] == 1
    assert figures["no_overlap_real"] == 1 and figures["match"] < others["match_codec"]


def test_the_codec_names_this_judge():
    assert judge_class(TrafficCodec) is TrafficJudge


def test_trials_of_a_model_that_drives():
    told = []

    def act(observations):
        told.extend(seen[-1]["text"] for seen in observations)
        keeps = observations[0][-1]["text"] == "keep the lane"
        return [np.array([SLOWER if keeps else IDLE] * 4)] * len(observations)

    trials = DrivingTrials(WORLD)
    figures = trials.figures(act, EvaluateConfig(trials=3), seed=0, folder=None, progress=QuietProgress())
    assert {*told} == {"drive as fast as is safe", "keep the lane"}
    assert figures["drive_crash_rate"] == figures["drive_crash_rate_idle"] == 1 and figures["drive_crash_rate_idm"] == 0
    assert figures["drive_speed"] == figures["drive_speed_idle"] > 0 and figures["drive_crash_rate_count"] == 3
    assert figures["drive_kept_lane"] == figures["drive_kept_lane_fast"] == 1
