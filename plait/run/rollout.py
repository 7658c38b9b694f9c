"""A trained model acting, an episode after another: `plait rollout`."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

from plait.codecs import Codec
from plait.common.errors import ConfigError, require
from plait.common.files import make_folder
from plait.config.run import RunConfig
from plait.evaluate.measures import rate_of
from plait.generate.actor import Actor
from plait.prepare.raw import Trials
from plait.prepare.raw_sources import remade
from plait.run.load import load_run, run_config
from plait.web.live import LivePage


def rollout(
    run: str | Path, *, tasks: Sequence[str] = (), episodes: int = 1, seed: int = 0, videos: str = "",
    port: int | None = None, device: str = "auto",
) -> str:  # fmt: skip
    """Print what becomes of each episode of a run's model, and return how often it succeeds, in words.

    ``videos``: a folder for a film of each; ``port``: a page on this machine shows them live (0: a free port). Raises
    ConfigError for a run whose data come from no environment.
    """
    config = run_config(run)
    require(not videos or not Path(videos).is_file(), "--videos", videos, "a folder")
    pipeline = load_run(config, device)
    trials = trials_of(config.data.path, config, pipeline.codecs)
    act = functools.partial(Actor(pipeline).chunks, seed=seed)
    hits: list[bool] = []
    with contextlib.ExitStack() as stack:
        page = None if port is None else stack.enter_context(LivePage(config.name, port))
        if page:
            print(f"live: {page.address}", flush=True)
        folder = Path(videos) if videos else None
        if folder:
            make_folder(folder)
        show = page.show if page else None
        for _, success, said in trials.watch(act, tasks=tasks, episodes=episodes, seed=seed, videos=folder, show=show):
            hits.append(success)
            print(said, flush=True)
    rate = rate_of(hits)
    return f"{sum(hits)} of {rate.count} succeed: {rate.value:.0%} (95% interval {rate.low:.0%} to {rate.high:.0%})"


def trials_of(folder: str, config: RunConfig, codecs: dict[str, Codec]) -> Trials:
    """Return what a run's model is tried in. Raises ConfigError where its data come from no environment."""
    source = remade(folder, config.prepare, codecs)
    if source is None or source.trials is None:
        raise ConfigError(
            f"rollout: the data of this run ({folder!r}) come from no environment, prepare.source must be one such as "
            "metaworld"
        )
    return source.trials
