"""A study: which models are compared, on what budget. One YAML file over the config of an ordinary run.

Every arm is the base config with some of the model's settings changed. Data, batches, their order, schedule and
evaluation steps are the base's, so that an arm can differ in its model and its learning rate alone.
"""

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from plait.common.errors import ConfigError, require, unknown
from plait.compare.curves import TRAINING, VALIDATION
from plait.config.bounds import Checked, bounded, needed
from plait.config.file import from_dict, load, read_yaml
from plait.config.run import RunConfig

FIGURES = ("", "steps_ratio", "end_ratio", "flops_ratio", "time_ratio")
SPLITS = (TRAINING, VALIDATION)


@dataclass
class ArmConfig(Checked):
    """One model of the comparison."""

    SECTION: ClassVar[str] = "arms"

    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted settings of the model that differ from the study's, such as model.untied."""
    about: str = ""
    """What the arm is, in a few words."""
    against: str = ""
    """The arm that this one is matched with. Empty: the study's."""
    tune: bool = False
    """Try all learning rates of the study's `tuning` and take the best one."""
    learning_rate_of: str = ""
    """The arm whose learning rate this one takes."""
    learning_rate: float = bounded(0.0, at_least=0)
    """A rate that was found elsewhere. 0, not tuned and of no other arm: train.learning_rate."""
    equal_flops: bool = True
    """Whether a step must cost as much as one of the arm that it is matched with."""
    equal_parameters_to: str = ""
    """An arm that must have as many parameters."""
    seeds: list[int] = field(default_factory=list)
    """Seeds of this arm. Empty: the study's."""


@dataclass
class BudgetConfig(Checked):
    """How long every arm is trained: one of the two."""

    SECTION: ClassVar[str] = "budget"

    steps: int = bounded(0, at_least=0)
    """Optimizer steps."""
    flops: float = bounded(0.0, at_least=0)
    """Operations (forward and backward, by formula): an arm gets as many steps as they pay for."""


@dataclass
class TuningConfig(Checked):
    """The search for each arm's learning rate, by whole runs of its first seed."""

    SECTION: ClassVar[str] = "tuning"

    learning_rates: list[float] = needed(above=0)
    """Rates to try, at least three."""


@dataclass
class PaperConfig(Checked):
    """A figure of the paper, to be shown beside what is measured."""

    SECTION: ClassVar[str] = "paper"

    claim: str
    """What it says."""
    value: float
    """The paper's figure."""
    unit: str = ""
    """What the figure counts."""
    model: str = ""
    """The paper's model."""
    arm: str = ""
    """The arm whose figure stands beside it. Empty: none of this study."""
    modality: str = ""
    """The modality of that figure."""
    split: str = "training"
    """"training", "validation" (the mean over all validation sets), or one validation set."""
    figure: str = "steps_ratio"
    """steps_ratio, end_ratio, flops_ratio, time_ratio; empty: not measured by step matching."""
    score: str = ""
    """A figure of `plait evaluate` (plait compare --evaluate), in place of one of step matching."""


@dataclass
class StudyConfig(Checked):
    """A study file."""

    base: str
    """A shipped config's name, or the path of a YAML file (from the study's folder)."""
    arms: dict[str, ArmConfig]
    """The models, by name."""
    name: str = "study"
    """Name shown on the page."""
    about: str = ""
    """What the study asks."""
    out: str = ""
    """Folder of data, runs and results. Empty: runs/studies/<name>. Studies with one folder share the arms of one
    name, which must then be the same."""
    against: str = "dense"
    """The arm that others are matched with."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted settings of all arms, laid over the base."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of initialisation and of the order of data; each seed gives all arms the same data."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    validate_every: int = bounded(50, at_least=1)
    """Steps between evaluations."""
    tuning: TuningConfig | None = None
    tolerance: float = bounded(0.02, at_least=0, below=1)
    """How much operations, and parameters, that are to be equal may differ, as a share."""
    single_pass: bool = True
    """Refuse budgets for which documents would have to be seen twice."""
    scaling: dict[str, list[str]] = field(default_factory=dict)
    """Arms of different sizes, at least three, by the name of their family, the reference first: final loss against
    operations is fitted for each."""
    paper: list[PaperConfig] = field(default_factory=list)
    """The paper's own figures."""
    shares: list[str] = field(default_factory=list)
    """Figures of `plait evaluate` that are shares of so many tries, such as success: counted over all seeds, and
    compared over the same tries (plait/compare/shares.py)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.arms) > 0, "arms", {}, "a mapping with at least one arm")
        require(bool(re.fullmatch(r"[\w-]+", self.name)), "name", self.name, "letters, digits, _ and -")
        self.out = self.out or f"runs/studies/{self.name}"
        self._known("against", self.against)
        require(bool(self.seeds) and _differ(self.seeds), "seeds", self.seeds, "a list of at least one seed, each once")
        b = self.budget
        require((b.steps > 0) != (b.flops > 0), "budget", {"steps": b.steps, "flops": b.flops},
                "either a number of steps or one of flops")  # fmt: skip
        for key in self.settings:
            require(key not in RESERVED, f"settings.{key}", self.settings[key],
                    "left to the study, which sets it for all arms")  # fmt: skip
        if self.tuning is not None:
            rates = self.tuning.learning_rates
            require(
                len(rates) >= 3 and _differ(rates), "tuning.learning_rates", rates, "at least three rates, each once"
            )
        for name, arm in self.arms.items():
            self._check_arm(name, arm)
        for family, arms in self.scaling.items():
            require(len(set(arms)) >= 3, f"scaling.{family}", arms, "at least three arms, one for each size")
            for member in arms:
                self._known(f"scaling.{family}", member)
        for i, entry in enumerate(self.paper):
            if entry.arm:
                self._known(f"paper[{i}].arm", entry.arm)
            require(bool(entry.arm) or not entry.score, f"paper[{i}].arm", entry.arm, "named beside a score")
            by_modality = entry.arm and entry.figure and not entry.score
            require(bool(entry.modality) or not by_modality, f"paper[{i}].modality", entry.modality,
                    "named beside a figure of an arm")  # fmt: skip
            if entry.figure not in FIGURES:
                raise ConfigError(unknown(f"paper[{i}].figure", entry.figure, filter(None, FIGURES)))

    def _check_arm(self, name: str, arm: ArmConfig) -> None:
        where = f"arms.{name}"
        require(bool(re.fullmatch(r"[\w-]+", name)), "arms", name, "names of letters, digits, _ and -")
        for key, value in arm.settings.items():
            require(key.startswith("model."), f"{where}.settings.{key}", value,
                    "a setting of the model (data, batches, schedule and evaluation are the same for all)")  # fmt: skip
        arm.against = arm.against or self.against
        for key in ("against", "learning_rate_of", "equal_parameters_to"):
            if getattr(arm, key):
                self._known(f"{where}.{key}", getattr(arm, key))
        arm.seeds = arm.seeds or self.seeds
        require(_differ(arm.seeds), f"{where}.seeds", arm.seeds, "a list of seeds, each once")
        others = self.arms[arm.against].seeds or self.seeds
        require(
            set(arm.seeds) <= set(others),
            f"{where}.seeds",
            arm.seeds,
            f"among the seeds of {arm.against!r}, with which it is matched ({', '.join(map(str, others))})",
        )
        is_other = arm.tune or arm.learning_rate_of
        require(not (is_other and arm.learning_rate), f"{where}.learning_rate", arm.learning_rate,
                "left out beside tune or learning_rate_of")  # fmt: skip
        if arm.tune:
            require(self.tuning is not None, f"{where}.tune", True, "false where the study has no tuning")
            require(not arm.learning_rate_of, f"{where}.learning_rate_of", arm.learning_rate_of,
                    "left out where the arm is tuned itself")  # fmt: skip
        elif arm.learning_rate_of:
            other = self.arms[arm.learning_rate_of]
            require(other.tune, f"{where}.learning_rate_of", arm.learning_rate_of, "an arm that is tuned itself")

    def _known(self, where: str, name: str) -> None:
        if name not in self.arms:
            raise ConfigError(unknown(where, name, self.arms))


def _differ(values: list) -> bool:
    return len(set(values)) == len(values)


RESERVED = ("name", "out", "seed", "train.steps", "train.minutes", "train.validate_every")
"""Settings that the study sets itself."""


@dataclass
class Study:
    """A study file that was read, and where its base config lies."""

    config: StudyConfig
    base: Path
    group: str
    """The name under which its logs are kept, with those of the studies that share its folder of runs: that of the
    folder that the file names, wherever the runs are."""
    overrides: list[str] = field(default_factory=list)
    """Dotted settings of the command line, for all arms."""

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def results(self) -> Path:
        """The folder of this study's results; runs lie beside it, where other studies find them."""
        return self.out / "results" / self.config.name

    def base_config(self) -> RunConfig:
        """Return the base with the study's settings: what data are prepared with."""
        return self._load({}, self.out)

    def run_config(
        self, arm: str, *, seed: int, steps: int, learning_rate: float | None = None, out: Path
    ) -> RunConfig:
        """Return the config of one run; no learning rate is the base's."""
        own = self.config.arms[arm].settings | {
            "train.steps": steps,
            "train.minutes": 0,
            "train.validate_every": self.config.validate_every,
            "seed": seed,
            "name": f"{arm}, seed {seed}",
        }
        if learning_rate is not None:
            own["train.learning_rate"] = learning_rate
        try:
            config = self._load(own, out)
        except ConfigError as error:
            raise ConfigError(f"arms.{arm}: {error}") from None
        config.data.path = self.base_config().data.path
        return config

    def steps(self, flops_a_step: float) -> int:
        """Return the steps of an arm whose step costs so much."""
        budget = self.config.budget
        return budget.steps or max(1, round(budget.flops / flops_a_step))

    def chosen_arms(self, names: Iterable[str] = ()) -> list[str]:
        """Return the arms of these names in the study's order; all where none is named (raises ConfigError)."""
        names = list(names)
        for name in names:
            self.config._known("--arms", name)
        return [name for name in self.config.arms if not names or name in names]

    def _load(self, own: dict[str, Any], out: Path) -> RunConfig:
        shared, own = copy.deepcopy((self.config.settings, own))  # a later override is laid over what they hold
        return load(self.base, [*shared.items(), *self.overrides, *own.items(), ("out", str(out))])


def load_study(
    path: str | Path, *, find_base: Callable[[str], Path] = Path, out: str = "", overrides: Sequence[str] = ()
) -> Study:
    """Read and check a study file; ``find_base`` finds the base config by its name.

    Every arm's config is built once, so that a wrong setting is named before anything runs (raises ConfigError).
    """
    path = Path(path)
    values = read_yaml(path, "study")
    config = from_dict(StudyConfig, {"name": path.stem} | values)
    for override in overrides:
        key = override.partition("=")[0]
        require(key not in RESERVED, key, override.partition("=")[2], "left to the study file")
    group, config.out = Path(config.out).name, out or config.out
    near = path.parent / config.base
    study = Study(config, near if near.is_file() else find_base(config.base), group, list(overrides))
    for arm in config.arms:
        study.run_config(arm, seed=0, steps=1, out=study.out)
    known = study.base_config().model.modalities
    for i, entry in enumerate(config.paper):
        if entry.modality and entry.modality not in known:
            raise ConfigError(unknown(f"paper[{i}].modality", entry.modality, known))
    return study
