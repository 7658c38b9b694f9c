"""MoT / dense of whole recipes, twice: forward + backward, and all that training does in a step.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py                          the shipped configs that a CPU trains
    OMP_NUM_THREADS=1 python benchmarks/recipes.py --recipe driving         one of them
    python benchmarks/recipes.py --device cuda                              32 thousand tokens a step, on a GPU

The arms are trainers of plait on the same documents in the same order, and a step is `Trainer`'s own. ``mot`` is the
config as it is. ``dense`` is the same config with one tower for all modalities: plait with one tower computes what the
plain dense transformer of tests/helpers/dense_reference.py computes, and takes at most 1.01 of its time
(``towers_ratio/1`` of step.py), so that it stands for it here, where loader, noise and losses are the recipe's.

The whole step takes batches from the loader (packed, noised and planned in its threads, whose time counts on a CPU),
accumulates as configured, clips, moves weights and averages, and writes a line of log at every ``train.log_every``-th
step: one step without a line and one with it are timed, and the line counts for its share. Checkpoints, validation and
the sampling of memory belong to a run and not to a step, and are left out.

Data are made up in a temporary folder: ids and latents by chance, items of the codecs' own extents, texts and speech
as long on average as those of the kept runs (docs/quickstart). Rows of a recipe, each optimizer at ``train.muon_rows``
of the config:

    recipe_ratio/forward-backward/<recipe>          a step's gradients, always of the same batches
    recipe_ratio/whole/<recipe>/<adamw or muon>     the whole step
    recipe_floor/<recipe>/<adamw or muon>           what it would be if only the optimizer and the averages cost more:
                                                    theirs in the dense step by the ratio of the numbers of parameters
    recipe_ratio/dense-again/<recipe>[/<optimizer>] another dense trainer: the noise
"""

import argparse
import contextlib
import itertools
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from harness import Measurement, Row, paired, parsed, parser, ratio_row, run, value_row
from shapes import HEAD_DIM, Shape

from plait.batch.batch import Batch
from plait.batch.documents import Document, Part
from plait.common.malloc import keep_freed_memory
from plait.common.progress import QuietProgress
from plait.config.file import load
from plait.config.run import DataConfig, RunConfig, TrainConfig
from plait.config.shipped import config_path
from plait.data.shards import split_record, write_index, write_shard
from plait.model.precision import autocast
from plait.objectives import weighted_loss
from plait.plan.workload import known_sizes
from plait.train.gradients import add_gradients
from plait.train.optim import set_learning_rate
from plait.train.profile import garbage_by_step
from plait.train.trainer import Trainer

OPTIMIZERS = ("adamw", "muon")
DOCUMENTS = 1024
"""Documents that are made up for a shipped config; the loader begins them again."""


@dataclass(frozen=True)
class Shipped:
    """A shipped config, with documents like those that it trains on."""

    name: str
    kinds: tuple[tuple[str, ...], ...]
    """The parts of a document; the kinds take turns."""
    sizes: Mapping[str, int | tuple[int, ...]]
    """Of parts whose codec tells no extent: mean tokens, which vary by half either way, or their extent."""
    settings: tuple[str, ...] = ()
    """What data alone would tell, and changes for a check."""
    end: str = ""

    def __str__(self) -> str:
        return self.name + self.end

    def config(self, folder: Path, device: str) -> RunConfig:
        """Return the run, on data in ``folder``."""
        own = [f"out={folder / 'run'}", f"data.path={folder / 'data'}", f"train.device={device}"]
        return load(config_path(self.name), [*own, *self.settings])

    def documents(self, config: RunConfig, grids: Mapping[str, tuple[int, ...]]) -> list[Document]:
        """Return documents; ``config`` and ``grids`` are what `known_sizes` returned."""
        rng, made = np.random.default_rng(0), []
        for index in range(DOCUMENTS):
            names = self.kinds[index % len(self.kinds)]
            made.append(Document([self._part(rng, name, config, grids.get(name, ())) for name in names]))
        return made

    def _part(self, rng: np.random.Generator, name: str, config: RunConfig, grid: tuple[int, ...]) -> Part:
        modality, size = config.model.modalities[name], grid or self.sizes[name]
        if isinstance(size, tuple):
            grid, size = size, math.prod(size)
        else:
            size = int(rng.integers(size - size // 2, size + size // 2, endpoint=True))
        if modality.objective == "next_token":
            return Part(name, rng.integers(0, modality.vocab_size, size), grid=grid)
        latents = rng.standard_normal((size, modality.latent_channels), dtype=np.float32)
        return Part(name, latents=latents, grid=grid or (size,))


@dataclass(frozen=True)
class Shaped:
    """A run of a shape of the other benchmarks, of one batch a step, as it would be trained on a GPU."""

    shape: Shape

    def __str__(self) -> str:
        return str(self.shape)

    def config(self, folder: Path, device: str) -> RunConfig:
        """Return the run, on data in ``folder``; Muon treats heads apart, as in the shipped configs."""
        train = TrainConfig(precision="bfloat16", compile=device == "cuda", device=device, ema=0.999,
                            muon_rows=HEAD_DIM)  # fmt: skip
        data = DataConfig(str(folder / "data"), batch_tokens=self.shape.tokens)
        return RunConfig(self.shape.config(), out=str(folder / "run"), data=data, train=train)

    def documents(self, config: RunConfig, grids: Mapping[str, tuple[int, ...]]) -> list[Document]:
        """Return documents of several batches."""
        return [document for seed in range(16) for document in self.shape.documents(seed)]


WITH_SPEECH = (("text", "image", "speech"),)
ROBOT = {"kinds": (("text", "image", "state", "actions"),), "sizes": {"text": 5, "state": (1,), "actions": (8,)},
         "settings": tuple(f"model.modalities.{name}.latent_channels=4" for name in ("state", "actions"))}  # fmt: skip
RECIPES: tuple[Shipped, ...] = (
    Shipped("quickstart", WITH_SPEECH, {"text": 7, "speech": 39}),
    Shipped("quickstart_transfusion", (("text", "image"),), {"text": 7}),
    Shipped("quickstart_chameleon_speech", WITH_SPEECH, {"text": 7, "speech": 39}),
    Shipped("quickstart_worlds", (("text", "scene3d", "view"), ("text", "scene3d", "motion")), {"text": 10}),
    Shipped("quickstart_robot", **ROBOT),
    Shipped("driving", (("text", "traffic"), ("text", "traffic", "actions")), {"text": 11}),
)


def grid(name: str) -> list[Shipped | Shaped]:
    """Return the recipes of a grid."""
    if name == "cpu":
        return [*RECIPES]
    if name == "gpu":
        mixes = ((50, 50), (34, 33, 33))
        return [Shaped(Shape(width, 32768, mix, vocabulary=16384)) for width in (2048, 1024) for mix in mixes]
    small = ("model.width=32", "model.num_layers=1", "model.num_heads=2", "model.ffn_width=64", "data.batch_tokens=192")
    robot = Shipped("quickstart_robot", **(ROBOT | {"settings": ROBOT["settings"] + small}), end="-tiny")
    return [robot, Shaped(Shape(64, 256, (50, 50), layers=1, vocabulary=240))]


def one_tower(config: RunConfig) -> RunConfig:
    """Return a run with the first modality's tower for all."""
    model = config.model
    modalities = {name: replace(m, tower=next(iter(model.modalities))) for name, m in model.modalities.items()}
    return replace(config, model=replace(model, modalities=modalities, towers={}), towers={})


def write_data(config: RunConfig, documents: Callable[..., list[Document]]) -> None:
    """Write made-up documents as the prepared folder of a run."""
    sized, grids = known_sizes(config)
    records = {}
    for name, m in sized.model.modalities.items():
        settings = config.modalities[name]
        ids = m.objective == "next_token"
        records[name] = {"codec": settings.codec, "key": settings.key or name, "fingerprint": "",
                         "vocab_size": m.vocab_size if ids else 0, "latent_channels": 0 if ids else m.latent_channels,
                         "patch_size": m.patch_size or 1, "default_grid": list(grids.get(name, ()))}  # fmt: skip
    folder = Path(config.data.path)
    entry, table = write_shard(folder, "train", 0, documents(sized, grids), records)
    write_index(folder, records, {"train": split_record(folder, "train", [entry], lambda: [table])})


@dataclass
class Arm:
    """A run's trainer under the clock; what it opens is closed with ``stack``."""

    config: RunConfig
    stack: contextlib.ExitStack
    trainer: Trainer = field(init=False)

    def __post_init__(self):
        self.trainer = trainer = Trainer(self.config, QuietProgress())
        self._loader = trainer._loader(None)
        self._read = self.stack.enter_context(contextlib.closing(iter(self._loader)))
        self._log = self.stack.enter_context(trainer._metrics())
        first = itertools.islice(self._read, trainer.num_batches)
        self._batches = [batch.to(trainer.device) for batch, _ in first]
        self._gradients: list[torch.Tensor | None] = []

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.trainer._trained())

    @property
    def share_of_log(self) -> float:
        """How much of a line of log a step has."""
        return 1 / self.trainer.config.train.log_every

    def forward_backward(self) -> None:
        """Make the gradients of the first batches, by what `Trainer.update` makes them with."""
        trainer, train = self.trainer, self.trainer.config.train
        trainer.optimizer.zero_grad(set_to_none=True)
        factors = trainer.loss_factors(trainer._exchange(self._batches))
        factors = torch.tensor(factors, dtype=torch.float32).to(trainer.device)

        def loss(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            with autocast(trainer.precision, trainer.device):
                return weighted_loss(trainer.model, trainer.model(batch), batch, factors, z_loss=train.z_loss)

        add_gradients(trainer._trained(), self._batches, loss, trainer._pool)

    def step(self) -> None:
        """Do a whole step after which no line of log is written."""
        self._step(self.trainer.config.train.log_every + 1)

    def logged_step(self) -> None:
        """Do a whole step with its line of log, for which the host waits for the device."""
        self._step(2 * self.trainer.config.train.log_every)
        self.trainer._log(self._log)
        self.trainer.measures.restart()

    def _step(self, number: int) -> None:
        self.trainer.state.step = number - 1
        self.trainer._step(self._read, self._loader)

    def move(self) -> None:
        """Do what is done for each parameter after the gradients are there, by kept gradients, at a rate of 0."""
        trainer = self.trainer
        if not self._gradients:
            self.forward_backward()
            self._gradients = [p.grad for p in trainer._trained()]
        for parameter, gradient in zip(trainer._trained(), self._gradients, strict=True):
            parameter.grad = gradient
        set_learning_rate(trainer.optimizer, 0.0)
        trainer.optimizer.found_inf = skipped = torch.zeros((), device=trainer.device)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        if trainer.averages:
            trainer.averages.update(skipped)


@contextlib.contextmanager
def opened(recipe: Shipped | Shaped, device: str, **train):
    """Enter a context with the arms of a recipe, by name; ``train`` changes settings of its section."""
    torch.compiler.reset()  # what one recipe has compiled counts against the next one's recompilations
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = recipe.config(folder, device)
        config = replace(config, train=replace(config.train, **train))
        write_data(config, recipe.documents)
        configs = {"dense": one_tower(config), "dense-again": one_tower(config), "mot": config}
        arms = {name: Arm(replace(c, out=str(folder / name)), stack) for name, c in configs.items()}
        stack.enter_context(garbage_by_step())
        yield arms


def gradient_rows(recipe: Shipped | Shaped, options: argparse.Namespace) -> list[Row]:
    """Return the rows of forward + backward."""
    with opened(recipe, options.device) as arms:
        timed = {name: [arm.forward_backward] for name, arm in arms.items()}
        times = paired(timed, turns=options.turns, device=options.device)
    mot, again = gradient_names(recipe)
    return [
        ratio_row(mot, times["mot"][0], times["dense"][0], against="dense"),
        ratio_row(again, times["dense-again"][0], times["dense"][0], against="dense"),
    ]


def whole_rows(recipe: Shipped | Shaped, optimizer: str, options: argparse.Namespace) -> list[Row]:
    """Return the rows of the whole step with one optimizer."""
    with opened(recipe, options.device, optimizer=optimizer) as arms:
        timed: dict[str, Sequence[Callable[[], None]]] = {n: [a.step, a.logged_step] for n, a in arms.items()}
        timed["dense"] = [*timed["dense"], arms["dense"].move]
        times = paired(timed, turns=options.turns, device=options.device)
        share, size = arms["mot"].share_of_log, arms["mot"].num_parameters / arms["dense"].num_parameters
    steps = {
        name: [(1 - share) * plain + share * logged for plain, logged in zip(*phases[:2], strict=True)]
        for name, phases in times.items()
    }
    dense, moved = statistics.median(steps["dense"]), statistics.median(times["dense"][2])
    whole, again, floor = whole_names(recipe, optimizer)
    return [
        ratio_row(whole, steps["mot"], steps["dense"], against="dense"),
        ratio_row(again, steps["dense-again"], steps["dense"], against="dense"),
        value_row(floor, 1 + (size - 1) * moved / dense, "ratio", against="dense"),
    ]


def gradient_names(recipe: Shipped | Shaped) -> list[str]:
    """Return the names of the rows of `gradient_rows`."""
    return [f"recipe_ratio/{kind}/{recipe}" for kind in ("forward-backward", "dense-again")]


def whole_names(recipe: Shipped | Shaped, optimizer: str) -> list[str]:
    """Return the names of the rows of `whole_rows`."""
    return [f"{kind}/{recipe}/{optimizer}" for kind in ("recipe_ratio/whole", "recipe_ratio/dense-again",
                                                        "recipe_floor")]  # fmt: skip


def measurements(options: argparse.Namespace) -> list[Measurement]:
    """Return everything that the command line asks for: three measurements a recipe."""
    wanted = []
    for recipe in grid(options.grid):
        if options.recipe not in ("", str(recipe)):
            continue
        wanted.append(Measurement(gradient_names(recipe), lambda recipe=recipe: gradient_rows(recipe, options)))
        for name in OPTIMIZERS:
            wanted.append(Measurement(
                whole_names(recipe, name), lambda recipe=recipe, name=name: whole_rows(recipe, name, options)
            ))  # fmt: skip
    return wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is that of `harness.run`."""
    command = parser(__doc__)
    command.add_argument("--recipe", default="", help="one recipe alone, by its name in rows")
    options = parsed(command, arguments)
    names = [str(recipe) for recipe in grid(options.grid)]
    if options.recipe not in ("", *names):
        command.error(f"--recipe: {options.recipe!r} is not in this grid, allowed: {', '.join(names)}")
    if options.grid != "tiny":
        keep_freed_memory()  # as the command line does
    return run(measurements(options), options)


if __name__ == "__main__":
    sys.exit(main())
