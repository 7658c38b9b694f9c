"""What a study is going to do: sizes, operations and steps of every arm, and whether they may be compared."""

import copy
import itertools
from dataclasses import dataclass

import numpy as np

from plait.batch.batch import Batch
from plait.common.errors import ConfigError, unknown
from plait.compare.curves import set_name
from plait.compare.equal_flops import Flops, step_flops
from plait.compare.study import SPLITS, Study
from plait.config.run import RunConfig
from plait.data.loader import Loader, open_task_sources
from plait.data.sources import folders, resolve_vocabulary, validation_splits
from plait.plan.flops import active_parameters, num_parameters
from plait.train.parallel import batches_of_a_step

BATCHES = 4
"""Packed batches on which operations are counted."""


@dataclass(frozen=True)
class ArmPlan:
    """What one arm costs."""

    arm: str
    parameters: int
    active_parameters: int
    """Those that one token passes through, in the tower where they are most."""
    flops: Flops
    """Operations of one optimizer step, forward and backward."""
    steps: int


def make_plan(study: Study, arms: list[str]) -> dict[str, ArmPlan]:
    """Plan the arms and those that they are compared with, on the first batches of the study's prepared data."""
    config = study.config
    named = {name: None for name in arms}
    for name in arms:
        named |= {config.arms[name].against: None}
        named |= {config.arms[name].equal_parameters_to: None} if config.arms[name].equal_parameters_to else {}
    return {name: _plan_arm(study, name) for name in config.arms if name in named}


def _plan_arm(study: Study, arm: str) -> ArmPlan:
    config = resolve_vocabulary(study.run_config(arm, seed=study.config.arms[arm].seeds[0], steps=1, out=study.out))
    flops = step_flops(config, first_batches(config, BATCHES))
    steps = study.steps(flops.formula)
    return ArmPlan(arm, num_parameters(config.model), active_parameters(config.model), flops, steps)


def first_batches(config: RunConfig, count: int) -> list[Batch]:
    """Return the first batches that a run trains on."""
    config = copy.copy(config)
    config.data = copy.copy(config.data)
    config.data.num_workers = 0
    return [batch for batch, _ in itertools.islice(Loader(config), count)]


def check_plan(study: Study, plan: dict[str, ArmPlan]) -> None:
    """Raise a ConfigError where arms that are to cost the same do not, or where documents would come twice.

    Also where the paper's figures ask for a validation set that the data do not have.
    """
    tolerance = study.config.tolerance
    for name, arm_plan in plan.items():
        arm = study.config.arms[name]
        if arm.equal_flops and arm.against in plan:
            other = plan[arm.against].flops
            for way in ("formula", "counted"):
                a, b = getattr(arm_plan.flops, way), getattr(other, way)
                if abs(a / b - 1) > tolerance:
                    raise ConfigError(
                        f"arms.{name}: a step takes {a / b:.4g} times the operations of {arm.against!r} (by {way}), "
                        f"beyond the tolerance of {tolerance}; give it another size, or set equal_flops: false"
                    )
        if arm.equal_parameters_to in plan:
            share = arm_plan.parameters / plan[arm.equal_parameters_to].parameters
            if abs(share - 1) > tolerance:
                raise ConfigError(
                    f"arms.{name}: it has {share:.4g} times the parameters of {arm.equal_parameters_to!r}, beyond the "
                    f"tolerance of {tolerance}; give it another size, or leave out equal_parameters_to"
                )
    splits = [*SPLITS, *map(set_name, validation_splits(study.base_config()))]
    for i, entry in enumerate(study.config.paper):
        if entry.arm and not entry.score and entry.split not in splits:
            raise ConfigError(unknown(f"paper[{i}].split", entry.split, splits))
    if study.config.single_pass and plan:
        _check_single_pass(study, max(p.steps for p in plan.values()))


def _check_single_pass(study: Study, steps: int) -> None:
    config = resolve_vocabulary(study.base_config())
    data = config.data
    sources = open_task_sources(config, "train", drop_condition=data.drop_condition, drop_host=data.drop_host)
    weights = np.array([folders(config)[s.source.folder].weight for s in sources])
    shares = weights / weights.sum()
    means = np.array([s.mean_length() for s in sources])
    tokens = steps * batches_of_a_step(config) * data.batch_tokens
    wanted = tokens / float(means @ shares)
    most = min(len(s) / share for s, share in zip(sources, shares, strict=True))
    if wanted > most:
        raise ConfigError(
            f"budget: {steps} steps read {tokens:,} tokens, about {wanted:,.0f} documents, but only {most:,.0f} are "
            "prepared, so that some would come twice; prepare more (prepare.documents) in another data.path, take "
            "fewer steps, or set single_pass: false"
        )
