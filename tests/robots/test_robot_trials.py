"""A policy tried from unseen starts: which figures there are, what is kept, and what is shown."""

import json

import numpy as np
import pytest

from plait.common.errors import ConfigError
from plait.common.progress import QuietProgress
from plait.config.episodes import EpisodesConfig
from plait.config.run import EvaluateConfig, PrepareConfig
from plait.robots import trials as module
from plait.robots.metaworld_tasks import SENTENCES
from plait.robots.rollouts import Rollout
from plait.robots.source import MetaworldSource
from plait.robots.trials import MetaworldTrials

pytest.importorskip("metaworld", reason="Meta-World is not installed")
TASKS = ("handle-press-v3", "coffee-button-v3")


def source(tasks=TASKS, **settings) -> MetaworldSource:
    episodes = EpisodesConfig(tasks=list(tasks))
    prepare = PrepareConfig(documents=32, validation_documents=16, image_size=16, episodes=episodes, **settings)
    return MetaworldSource(prepare, 0, parts=("text", "image", "state", "actions"))


def presses(observations: list[list[dict]]) -> list[np.ndarray]:
    """A policy that goes down and forward, whatever it sees: it hits the handle or not, as the start has it."""
    return [np.tile(np.array([0, 0.4, -1, 0], np.float32), (8, 1)) for _ in observations]


def test_every_task_is_told_another_ones_sentence():
    trials = MetaworldTrials(source())
    assert trials.others() == {TASKS[0]: SENTENCES[TASKS[1]], TASKS[1]: SENTENCES[TASKS[0]]}
    same = source(tasks=("push-v3", "push-back-v3", *TASKS))
    assert all(said != SENTENCES[task] for task, said in MetaworldTrials(same).others().items())


def test_success_by_how_hard_tasks_are():
    tasks = ("handle-press-v3", "handle-press-v3", "soccer-v3", "sweep-v3", "push-v3")
    hits = (True, False, True, False, False)
    rollouts = [Rollout(task, k, hit, 1, np.zeros((1, 4), np.float32))
                for k, (task, hit) in enumerate(zip(tasks, hits, strict=True))]  # fmt: skip
    figures = module._by_difficulty(rollouts)
    assert [figures[f"success_{name}"] for name in ("easy", "medium", "hard")] == [0.5, 0.5, 0]
    assert figures["success_by_difficulty"] == pytest.approx(1 / 3) and figures["success_medium_count"] == 2
    assert "success_very_hard" not in figures and not module._by_difficulty(rollouts[:2])


@pytest.mark.slow
def test_figures_of_a_policy_and_what_stands_beside_them(tmp_path, monkeypatch):
    """Rows that no model changes are kept; another count of episodes makes them again."""
    monkeypatch.setattr(module, "SIZE", 32)
    settings = EvaluateConfig(trials=2)
    trials = MetaworldTrials(source())
    figures = trials.figures(presses, settings, seed=0, folder=tmp_path, progress=QuietProgress())
    assert figures["success_expert"] == 1 and figures["success_count"] == 2
    by_task = [figures[f"success/{task}"] for task in TASKS]
    assert figures["success"] == np.mean(by_task) and 0 <= figures["success_low"] <= figures["success"]
    assert figures["success_wrong_instruction"] == figures["success"]  # it does not read
    assert figures["seconds_per_action"] > 0 and "success_baseline" not in figures
    shown = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert len(shown) == 2 and all((tmp_path / record["file"]).stat().st_size > 1000 for record in shown)
    assert {record["success"] for record in shown} == {bool(hit) for hit in by_task}

    def again(*args, **kwargs):
        raise AssertionError("made again")

    monkeypatch.setattr(module, "expert_rollouts", again)
    kept = trials.figures(presses, settings, seed=0, folder=tmp_path, progress=QuietProgress())
    assert {k: v for k, v in kept.items() if "seconds" not in k} == {k: v for k, v in figures.items()
                                                                    if "seconds" not in k}  # fmt: skip
    with pytest.raises(AssertionError, match="made again"):
        trials.figures(presses, EvaluateConfig(trials=4), seed=0, folder=tmp_path, progress=QuietProgress())


def test_episodes_are_watched_one_by_one(tmp_path):
    images, lines = [], []

    def show(image: np.ndarray, said: str) -> None:
        images.append(image)
        lines.append(said)

    pytest.importorskip("av", reason="PyAV is not installed")
    trials = MetaworldTrials(source())
    ((task, success, said),) = trials.watch(presses, tasks=[TASKS[0]], episodes=1, seed=3, videos=tmp_path, show=show)
    assert task == TASKS[0] and said.startswith("Press a handle down, start 3: ")
    assert ("succeeds" in said) == success and f"{len(images)} steps" in said
    assert lines[0] == "Press a handle down, start 3, step 1" and images[0].shape == (192, 192, 3)
    assert (tmp_path / "handle-press-v3-3.mp4").stat().st_size > 1000
    with pytest.raises(ConfigError, match="press-handle"):
        list(trials.watch(presses, tasks=["press-handle"], episodes=1, seed=0, videos=None, show=None))


@pytest.mark.slow
def test_a_plain_network_is_trained_beside(tmp_path):
    """As long as it is told, on the documents of the source, made again in other processes."""
    figures = MetaworldTrials(source()).figures(
        presses, EvaluateConfig(trials=2, baseline_minutes=0.05), seed=0, folder=None, progress=QuietProgress()
    )
    assert figures["success_baseline_count"] == 2 and 0 <= figures["success_baseline"] <= 1
