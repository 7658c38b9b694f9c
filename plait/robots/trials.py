"""A policy tried in Meta-World's tasks from unseen starts: how often it succeeds, beside others, and how it looks.

- success: the share of episodes that succeed, with Wilson's 95% interval; success/TASK of each task. Of tasks that are
  not equally hard also success_easy, success_medium and so on, and success_by_difficulty, the mean of these, which is
  what is published of all 50 (MT50).
- success_wrong_instruction: where every task is told another one's sentence: a policy that reads fails then.
- success_expert, success_random, success_baseline: the scripted expert, which sees where objects are, random actions,
  and a plain network that was trained for `evaluate.baseline_minutes` on the same documents (plait/robots/baseline.py).
- seconds_per_action: of one environment alone, on this machine.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.common.files import read_json, write_json
from plait.common.progress import Progress
from plait.config.run import EvaluateConfig
from plait.evaluate.films import FAILURES, SHOWN, Film, write_film, write_shown
from plait.evaluate.measures import Measure
from plait.prepare.raw import Act, TrialRow, TrialTable
from plait.robots import baseline
from plait.robots.metaworld_env import RATE, TaskEnv
from plait.robots.metaworld_tasks import DIFFICULTY, SENTENCES, check_task, difficulty_of
from plait.robots.rollouts import (
    EXECUTE,
    Rollout,
    expert_rollouts,
    images_of,
    random_rollouts,
    roll_out,
    rollout,
    success_table,
)
from plait.robots.source import MetaworldSource

BESIDE = 50
"""Most episodes of each row beside the model's own."""
SIZE = 192
"""Side of what is shown, in pixels."""
VERSION = 1
"""Of the rows beside; those of another version are made again."""


def _share(difficulty: str) -> str:
    """Return the figure of how often tasks succeed that are so hard."""
    return "success_" + difficulty.replace(" ", "_")


_WHO = {
    "success": "the model", "success_expert": "the scripted expert", "success_baseline": "a plain network",
    "success_wrong_instruction": "the model, told another task", "success_random": "random actions",
    "success_by_difficulty": "the model, mean of the four below",
    **{_share(name): f"the model, {name} tasks" for name in DIFFICULTY},
}  # fmt: skip
TABLES = (
    TrialTable(
        "Share of episodes that succeed, from starts that training never shows, with its 95% interval.",
        tuple(TrialRow(who, figure) for figure, who in _WHO.items()),
        parts="success",
    ),
)
"""How a page shows the figures."""

Figures = dict[str, float]


class MetaworldTrials:
    """Unseen starts of a source's tasks."""

    def __init__(self, source: MetaworldSource):
        self.source, self.tasks = source, source.tasks

    def figures(
        self, act: Act, evaluate: EvaluateConfig, *, seed: int, folder: Path | None, progress: Progress
    ) -> Figures:
        """Return figures of `evaluate.trials` episodes, spread over the tasks; some are shown in ``folder``."""
        seeds = range(-(-evaluate.trials // len(self.tasks)))
        few = range(max(1, min(len(seeds), BESIDE // len(self.tasks))))
        own = self._rolled_out(act, seeds, progress, "episodes of the model")
        wrong = self._rolled_out(act, few, progress, "told another task", said=self.others())
        figures = _named("success", success_table(own)) | _by_difficulty(own)
        figures |= _of_all("success_wrong_instruction", wrong)
        figures |= self._beside(few, evaluate, seed, folder, progress)
        if folder is not None:
            write_shown(folder, TABLES, _films(own), RATE)
        return figures | {"seconds_per_action": self._seconds(act)}

    def watch(
        self, act: Act, *, tasks: Sequence[str], episodes: int, seed: int, videos: Path | None,
        show: Callable[[np.ndarray, str], None] | None,
    ) -> Iterator[tuple[str, bool, str]]:  # fmt: skip
        """Act in unseen starts, one after another; see `plait.prepare.raw.Trials`."""
        for task in [check_task(task, "--task") for task in tasks] or self.tasks:
            env = TaskEnv(task, self.source.image_size, max_steps=self.source.settings.max_steps)
            try:
                for number in range(seed, seed + episodes):
                    episode = self._watched(act, env, number, show)
                    said = f"{SENTENCES[task]}, start {number}: {_ending(episode)}"
                    if videos is not None:
                        write_film(images_of(episode, SIZE), videos / f"{task}-{number}.mp4", RATE)
                    yield task, episode.success, said
            finally:
                env.close()

    def _watched(
        self, act: Act, env: TaskEnv, number: int, show: Callable[[np.ndarray, str], None] | None
    ) -> Rollout:  # fmt: skip
        steps = itertools.count(1)

        def watch() -> None:
            if show is not None:
                show(env.render(SIZE), f"{env.sentence}, start {number}, step {next(steps)}")

        history = self.source.settings.history
        return rollout(env, lambda seen: act([seen])[0], seed=number, history=history, watch=watch)

    def others(self) -> dict[str, str]:
        """Return for each task the sentence of the next one that says something else."""
        said = [SENTENCES[task] for task in self.tasks]
        another = {}
        for k, task in enumerate(self.tasks):
            turned = [*said[k + 1 :], *said[:k]]
            another[task] = next((s for s in turned if s != SENTENCES[task]), SENTENCES[task])
        return another

    def _rolled_out(
        self, act: Act, seeds: Sequence[int], progress: Progress, title: str, said: Mapping[str, str] | None = None
    ) -> list[Rollout]:
        source = self.source
        with progress.stage(f"robot: {title}", total=len(self.tasks) * len(seeds)) as bar:
            return roll_out(self.tasks, seeds, act, image_size=source.image_size, history=source.settings.history,
                            max_steps=source.settings.max_steps, said=said, progress=bar.to)  # fmt: skip

    def _beside(
        self, seeds: Sequence[int], evaluate: EvaluateConfig, seed: int, folder: Path | None, progress: Progress
    ) -> Figures:
        """Return the rows beside the model's, from a file of ``folder`` where they were made before."""
        source, minutes = self.source, evaluate.baseline_minutes
        key: dict[str, Any] = {
            "tasks": list(self.tasks), "seeds": len(seeds), "minutes": minutes, "documents": source.splits()["train"],
            "seed": [seed, source.seed], "size": source.image_size, "chunk": source.settings.chunk,
            "max_steps": source.settings.max_steps, "version": VERSION,
        }  # fmt: skip
        path = folder / "beside.json" if folder else None
        if path and path.is_file() and (kept := read_json(path, "evaluation")).get("key") == key:
            return {name: float(value) for name, value in kept["figures"].items()}
        longest = source.settings.max_steps
        figures = _of_all("success_expert", expert_rollouts(self.tasks, seeds, max_steps=longest))
        figures |= _of_all("success_random", random_rollouts(self.tasks, seeds, seed=seed, max_steps=longest))
        if minutes:
            with progress.stage(f"robot: plain network, {minutes:g} min", total=1) as bar:
                threads = torch.get_num_threads()
                model = baseline.trained(source, minutes, seed=seed, advance=bar.to)
                torch.set_num_threads(threads)
            found = self._rolled_out(model.act, seeds, progress, "episodes of the plain network")
            figures |= _of_all("success_baseline", found)
        if path:
            write_json(path, {"key": key, "figures": figures})
        return figures

    def _seconds(self, act: Act, times: int = 5) -> float:
        """Return the seconds that the model takes for each action that is done, of one environment alone."""
        env = TaskEnv(self.tasks[0], self.source.image_size)
        env.restart(0)
        observation = [env.observation()] * (self.source.settings.history + 1)
        env.close()
        chunk = act([observation])[0]
        began = time.perf_counter()
        for _ in range(times):
            act([observation])
        return (time.perf_counter() - began) / times / min(EXECUTE, len(chunk))


def _films(rollouts: Sequence[Rollout]) -> Iterator[Film]:
    """Yield the first failure of each task, `FAILURES` at most, after the first success of each for the rest."""
    failed, succeeded = (
        list({r.task: r for r in reversed(rollouts) if r.success == hit}.values())[::-1] for hit in (False, True)
    )
    failed = failed[:FAILURES]
    for episode in [*succeeded[: SHOWN - len(failed)], *failed]:
        frames = images_of(episode, SIZE)
        yield Film(f"{episode.task}-{episode.seed}", SENTENCES[episode.task], _ending(episode), episode.success, frames)


def _ending(episode: Rollout) -> str:
    return f"succeeds after {episode.steps} steps" if episode.success else f"fails in {episode.steps} steps"


def _of_all(name: str, rollouts: Sequence[Rollout]) -> Figures:
    return _named(name, {"all": success_table(rollouts)["all"]})


def _by_difficulty(rollouts: Sequence[Rollout]) -> Figures:
    """Return success by how hard tasks are, and the mean of these shares; nothing where all are equally hard."""
    grouped = success_table([dataclasses.replace(one, task=difficulty_of(one.task)) for one in rollouts])
    groups = [name for name in DIFFICULTY if name in grouped]
    if len(groups) < 2:
        return {}
    figures: Figures = {"success_by_difficulty": sum(grouped[name]["success"] for name in groups) / len(groups)}
    for name in groups:
        figures |= _named(_share(name), {"all": grouped[name]})
    return figures


def _named(name: str, table: Mapping[str, Mapping[str, float]]) -> Figures:
    """Return a table's shares, intervals and counts by names such as "success", "success_low", "success/TASK"."""
    figures: Figures = {}
    for task, row in table.items():
        prefix = name if task == "all" else f"{name}/{task}"
        figures |= Measure(row["success"], row["low"], row["high"], int(row["episodes"])).figures(prefix)
    return figures
