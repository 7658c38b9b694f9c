"""Runs a study: data, learning rates, then every arm with every seed, each an ordinary run in its own folder.

``<out>/data`` is prepared once; ``data.json`` holds its digest. ``<out>/runs/<arm>/<learning rate>/seed-<n>`` are run
folders, with ``done.json`` where a run has ended well and ``failure.json`` where it has not. Trials of learning rates
are whole runs of an arm's first seed, and the best one of them is that seed's run: trials on a shorter schedule choose
rates that are too high (docs/experiments.md). Trials from kept logs (plait/compare/rate_trials.py) are not run again.
The same command skips what is done, resumes what was interrupted, and tries again what failed. Several processes may
run it at once, one for each GPU: a lock in every run folder keeps them apart.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from plait.common.errors import ConfigError, Held, PlaitError
from plait.common.files import read_json, write_json
from plait.common.locks import one_writer
from plait.common.progress import Progress
from plait.compare.curves import final_losses, score
from plait.compare.planned_runs import ArmPlan, check_plan, make_plan
from plait.compare.rate_trials import Trials, check_trials, taken_trials
from plait.compare.study import Study
from plait.config.run import RunConfig
from plait.config.settings import RESULTS, check_same, identity
from plait.data.sources import data_fingerprint, folders
from plait.prepare.stages import prepare
from plait.train.acceptance import keep_config
from plait.train.trainer import Trainer, TrainingStopped

DONE, FAILURE, DATA = "done.json", "failure.json", "data.json"
SECONDS_TO_WAIT = 5


@dataclass
class Tuned:
    """The learning rate of an arm, and what was tried to find it."""

    learning_rate: float | None
    """None where every trial failed, and while some are not over."""
    is_over: bool
    """Whether every trial is."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """One row a rate: learning_rate, score, error, and the final losses."""
    at_edge: bool = False
    """Whether the best rate was the lowest or the highest one, so that a better one may lie beyond."""


class StudyFailed(PlaitError):
    """Some runs of a study failed; the others are done."""


class StudyRun:
    """One call of `plait compare`."""

    def __init__(self, study: Study, progress: Progress, *, arms: list[str], seeds: list[int]):
        """``arms`` and ``seeds`` are those to run; no seeds are all of the study."""
        self.study, self.progress = study, progress
        self.arms = arms
        self.seeds = seeds
        self.failures: list[str] = []
        self.plan: dict[str, ArmPlan] = {}
        self.data = ""  # digest of the prepared data, once it is there
        self._taken: Trials = taken_trials(study)
        self._tuned: dict[str, Tuned] = {}  # by arm, where every trial ended well, so that nothing changes any more

    def make_plan(self, arms: Sequence[str] = ()) -> dict[str, ArmPlan]:
        """Prepare the data where that was not done, and plan and check arms, all where none is named."""
        self.share([()], self._prepare, "prepares the data")
        self.plan = make_plan(self.study, list(arms) or list(self.study.config.arms))
        check_plan(self.study, self.plan)
        check_trials(self.study, self.plan)
        return self.plan

    def run(self) -> None:
        """Train what is not done yet; raises TrainingStopped when asked to stop. Failures are kept in `failures`."""
        self.make_plan()
        owners = [owner for owner in dict.fromkeys(map(self.rate_owner, self.arms)) if owner]
        trials = [(owner, rate) for owner in owners for rate in self.rates_to_try(owner)]
        self.share(trials, self._try, "tries learning rates")
        jobs = [(arm, seed) for arm in self.arms for seed in self.seeds_of(arm)]
        self.share(_by_seed(jobs), self._run, "trains")

    def share(self, jobs: list[tuple], do: Callable[..., None], doing: str) -> None:
        """Do every job, and come back to those that other processes are at, until these have ended them."""
        waited = False
        while jobs:
            left = []
            for job in jobs:
                try:
                    do(*job)
                except Held:
                    left.append(job)
            if left == jobs:
                if not waited:
                    self.progress.print(f"another process {doing}: waiting for it")
                waited = True
                time.sleep(SECONDS_TO_WAIT)
            jobs = left

    def _prepare(self) -> None:
        config = self.study.base_config()
        with one_writer(self.study.out, "study"):
            if not all((Path(folder) / "index.json").exists() for folder in folders(config)):
                prepare(config, progress=self.progress)
            self.data = _same_data(self.study.out / DATA, data_fingerprint(config))

    def _try(self, arm: str, rate: float) -> None:
        seed = self._first_seed(arm)
        if not _diverged(self._folder(arm, rate, seed)):
            self._train(arm, rate, seed, is_trial=True)

    def _run(self, arm: str, seed: int) -> None:
        rate = self.learning_rate(arm)
        if rate is None:
            self.failures.append(f"{arm}, seed {seed}: {self._without_rate(arm)}")
        else:
            self._train(arm, rate, seed, is_trial=False)

    def _without_rate(self, arm: str) -> str:
        return f"no learning rate of {self.rate_owner(arm)!r} ended well"

    def seeds_of(self, arm: str) -> list[int]:
        """Return the seeds of an arm that are to be run."""
        own = self.study.config.arms[arm].seeds
        return [s for s in own if s in self.seeds] if self.seeds else own

    def finished(self) -> list[tuple[str, int]]:
        """Return arm and seed of the finished runs of the chosen arms and seeds, seed by seed."""
        runs = [(arm, seed) for arm in self.arms for seed in self.seeds_of(arm)]
        return _by_seed([run for run in runs if self.status(*run)[0] == "finished"])

    def each_finished(self, doing: str) -> Iterator[tuple[str, int, Path]]:
        """Go through the finished runs of the chosen arms and seeds, (arm, seed, folder), and show how far it is."""
        finished = self.finished()
        with self.progress.stage(doing, total=len(finished)) as bar:
            for arm, seed in finished:
                yield arm, seed, self.folder(arm, seed)
                bar.advance(1, f"{arm}, seed {seed}")

    def folder(self, arm: str, seed: int) -> Path | None:
        """Return the folder of a run; None where its arm has no learning rate (yet)."""
        rate = self.learning_rate(arm)
        return None if rate is None else self._folder(arm, rate, seed)

    def status(self, arm: str, seed: int) -> tuple[str, str]:
        """Return finished, failed, stopped or waiting, and the error of a failed run."""
        folder = self.folder(arm, seed)
        if folder is not None:
            return status(folder)
        is_over = self.read_trials(self.rate_owner(arm)).is_over
        return ("failed", self._without_rate(arm)) if is_over else ("waiting", "")

    def learning_rate(self, arm: str) -> float | None:
        """Return the learning rate of an arm; None while trials are not over, and where all of them failed."""
        owner = self.rate_owner(arm)
        own = self.study.config.arms[arm].learning_rate or self.study.base_config().train.learning_rate
        return self.read_trials(owner).learning_rate if owner else own

    def rate_owner(self, arm: str) -> str:
        """Return the arm whose trials give this one its learning rate, or ""."""
        record = self.study.config.arms[arm]
        return arm if record.tune else record.learning_rate_of

    def rates_to_try(self, arm: str) -> list[float]:
        """Return the learning rates of which no trial was taken from kept logs."""
        return [rate for rate in self.study.config.tuning.learning_rates if (arm, rate) not in self._taken]

    def read_trials(self, arm: str) -> Tuned:
        """Return what the trials of an arm have found, those that are over."""
        if arm not in self._tuned:
            tuned = self._read_trials(arm)
            if not tuned.is_over or any(trial["error"] for trial in tuned.trials):
                return tuned
            self._tuned[arm] = tuned
        return self._tuned[arm]

    def _read_trials(self, arm: str) -> Tuned:
        rates = sorted(set(self.study.config.tuning.learning_rates))
        trials = []
        for rate in rates:
            if (arm, rate) in self._taken:
                trials.append(self._taken[arm, rate])
                continue
            out = self._folder(arm, rate, self._first_seed(arm))
            state, error = status(out)
            if state in ("finished", "failed"):
                losses = final_losses(out) if state == "finished" else {}
                mean_loss = score(losses)
                error = error or ("" if mean_loss is not None else "its last validation losses are no finite numbers")
                trials.append(
                    {"arm": arm, "learning_rate": rate, "score": mean_loss, "error": error, "data": self.data, **losses}
                )
        done, is_over = [t for t in trials if t["score"] is not None], len(trials) == len(rates)
        if not done or not is_over:
            return Tuned(None, is_over, trials)
        best = min(done, key=lambda t: t["score"])
        return Tuned(best["learning_rate"], is_over, trials, at_edge=best in (trials[0], trials[-1]))

    def _folder(self, arm: str, rate: float, seed: int) -> Path:
        return self.study.out / "runs" / arm / f"{rate:g}" / f"seed-{seed}"

    def _first_seed(self, arm: str) -> int:
        return self.study.config.arms[arm].seeds[0]

    def _train(self, arm: str, rate: float, seed: int, *, is_trial: bool) -> None:
        """Train one run to its end, where it is not done.

        A trial of a learning rate may fail without the study failing: rates that are too high do. Raises Held where
        another process trains it.
        """
        out = self._folder(arm, rate, seed)
        config = self.study.run_config(arm, seed=seed, steps=self.plan[arm].steps, learning_rate=rate, out=out)
        with one_writer(out, "run"):
            claim_folder(config)
            if not (out / DONE).exists():
                self._train_config(config, is_trial=is_trial)

    def _train_config(self, config: RunConfig, *, is_trial: bool) -> None:
        out = Path(config.out)
        name = str(out.relative_to(self.study.out))
        self.progress.print(f"{name}: {config.train.steps} steps, learning rate {config.train.learning_rate:g}")
        try:
            trainer = Trainer(config, self.progress)
            trainer.run()
        except TrainingStopped:
            raise
        except Exception as error:  # a failed arm is written down, and the others go on
            said = str(error) or type(error).__name__
            write_json(
                out / FAILURE, {"error": said, "kind": type(error).__name__, "traceback": traceback.format_exc()}
            )
            self.failures += [] if is_trial else [f"{name}: {said}"]
            self.progress.print(f"{name} failed: {said}")
            return
        state = trainer.state
        write_json(out / DONE, {"steps": state.step, "tokens": state.tokens, "seconds": state.seconds,
                                "skipped_steps": state.skipped_steps})  # fmt: skip
        (out / FAILURE).unlink(missing_ok=True)


def _by_seed(runs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return runs in the order in which whole comparisons come first."""
    return sorted(runs, key=lambda run: run[1])


def _same_data(path: Path, digest: str) -> str:
    """Return the digest of the data, and write it down; raises ConfigError where runs were begun on other data."""
    if not path.exists():
        write_json(path, {"data": digest})
    known = read_json(path, "digest of data")["data"]
    if known != digest:
        raise ConfigError(
            f"data.path: its documents have the digest {digest}, but the runs in {str(path.parent)!r} read others "
            f"({known}), so that they could not be matched; take the old data or another --out, or remove that folder"
        )
    return digest


def claim_folder(config: RunConfig) -> None:
    """Write a run's config into a new folder; in one that was begun, check that its losses would be the same.

    Raises ConfigError.
    """
    path = Path(config.out) / "config.yaml"
    if path.exists():
        before, now = (identity(c, RESULTS) for c in (yaml.safe_load(path.read_text(encoding="utf-8")), config))
        cure = "take the old setting or another --out, or remove that folder"
        check_same(before, now, repr(config.out), cure)
    keep_config(config)


def _diverged(folder: Path) -> str:
    """Return the error of a trial that training itself gave up, which would come again; "" otherwise."""
    failure = read_json(folder / FAILURE, "failure") if (folder / FAILURE).exists() else {}
    return failure["error"] if failure.get("kind") == "PlaitError" else ""


def status(folder: Path) -> tuple[str, str]:
    """Return finished, failed, stopped or waiting, and the error of a failed run."""
    if (folder / DONE).exists():
        return "finished", ""
    if (folder / FAILURE).exists():
        return "failed", read_json(folder / FAILURE, "failure")["error"]
    return ("stopped" if (folder / "metrics.jsonl").exists() else "waiting"), ""
