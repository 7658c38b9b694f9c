"""Every setting of a run, as dataclasses that check themselves. `plait.config.file` reads them from YAML."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from plait.common.errors import ConfigError, require, unknown
from plait.config.bounds import Checked, bounded
from plait.config.episodes import EpisodesConfig
from plait.config.generation import DiffusionConfig, GenerateConfig, check_sampler
from plait.config.model import ModelConfig
from plait.config.run_records import ModalitySettings, TowerSettings, fixed_towers, records_of
from plait.config.tasks import AS_WRITTEN_TASK, lacking, mentions_of

SCHEMA_VERSION = 1

WORLDS = ("scenes", "worlds", "metaworld", "driving")
"""Values of `prepare.source` for documents that plait makes."""


@dataclass
class PrepareConfig(Checked):
    """Raw media to encoded shards (plait prepare)."""

    SECTION: ClassVar[str] = "prepare"

    source: str | list[str] = "scenes"
    """"scenes" (drawn from OpenMoji and spoken by eSpeak), "worlds" (real furniture in three dimensions, some of it
    moving), "metaworld" (simulated robots at Meta-World's tasks), "driving" (simulated traffic), lerobot:FOLDER (a
    LeRobotDataset v3, episodes of robots), or manifests: JSONL, Parquet or WebDataset tars, as a path, an address
    (s3://, gs://, https://), a glob, or a list of such."""
    columns: dict[str, str] = field(default_factory=dict)
    """Parquet columns, or suffixes in a tar, that are parts, with the manifest key of each, such as {jpg: image, txt:
    text}. Empty: those with well-known names."""
    allow_outside: bool = False
    """Let manifests name media outside of their own folder: absolute paths, "..", links that lead out, addresses."""
    documents: int = bounded(16000, at_least=1)
    """Training documents to make (scenes, worlds)."""
    validation_documents: int = bounded(400, at_least=0)
    """Documents in each validation split (scenes, worlds); 0: empty splits, so nothing is validated."""
    validation_share: float = bounded(0.02, at_least=0, below=1)
    """Share of documents held out for validation (manifest), chosen by a hash of their content; of a LeRobotDataset
    whole episodes, chosen by a hash of their number."""
    concepts: int | Literal["all"] = bounded("all", at_least=2)
    """Concepts that scenes show: so many everyday ones, chosen by rule (plait/scenes/drawings.py,
    plait/worlds/world.py), some of whose combinations training never shows; or all: of OpenMoji those that can be named
    (scenes), and 80 pieces of furniture (worlds)."""
    passages: float = bounded(0.0, at_least=0, below=1)
    """Share of the training documents that are passages of Python's own library, text alone, in place of scenes."""
    drawings: str = ""
    """Folder of an Iconify package (icons.json, chars.json), such as Twemoji's: the same things drawn in its style.
    Empty: OpenMoji's drawings (scenes)."""
    image_size: int = bounded(32, at_least=1)
    """Side of a scene's image, in pixels (scenes, worlds)."""
    codecs_from: str = ""
    """A prepared folder whose codecs are used, so that both can be mixed. Empty: codecs are made here."""
    codec_documents: int = bounded(3000, at_least=1)
    """Documents that the codecs are trained on."""
    codec_minutes: float = bounded(2.5, at_least=0)
    """Time each trained codec may take, on this machine's cores, where its own options give no steps."""
    max_broken_share: float = bounded(0.05, at_least=0, at_most=1)
    """More broken rows than this share stop the run (manifest)."""
    num_workers: int = bounded(0, at_least=0)
    """Worker processes; 0 means one for each core. The result does not depend on it."""
    shard_documents: int = bounded(2048, at_least=1)
    """Documents in one shard."""
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)


@dataclass
class SourceConfig(Checked):
    """One of several prepared folders that are mixed."""

    SECTION: ClassVar[str] = "data.sources"

    weight: float = bounded(1.0, above=0)
    """Its share of the documents, relative to the other sources'."""
    when_exhausted: Literal["repeat", "stop", "drop"] = "repeat"
    """What happens when the source is exhausted: it begins again in a new order (repeat), all data end where it would
    have to begin again (stop), or the others go on without it (drop)."""
    tasks: dict[str, float] = bounded(dict, at_least=0)
    """Weights of its own part orders, in place of `data.tasks`, such as "image,text" alone. Empty: `data.tasks`."""


@dataclass
class DataConfig(Checked):
    """From encoded shards to packed batches."""

    SECTION: ClassVar[str] = "data"

    path: str = ""
    """Folder made by plait prepare. Empty: the run's own `data` folder."""
    sources: dict[str, float | SourceConfig] = bounded(dict, above=0)
    """More prepared folders, mixed in place of `path`: the weight of each, or {weight, when_exhausted, tasks}."""
    batch_tokens: int = bounded(4096, at_least=1)
    """Tokens in one packed batch."""
    max_document_tokens: int = bounded(0, at_least=0)
    """Longest document; 0 means batch_tokens, or model.max_positions where that is less."""
    too_long: Literal["split", "truncate", "skip"] = "split"
    """What happens to a longer document; counted in either case."""
    tasks: dict[str, float] = bounded(dict, at_least=0)
    """Weights of part orders, such as "text,image": the modalities given first, the last one predicted from them; or
    "image,text without speech", for documents that have no part of another. "as_written" is all parts in their order,
    each predicted from those before but for those that carry no loss; empty: that alone."""
    drop_condition: float = bounded(0.1, at_least=0, below=1)
    """Rate at which all parts before the last are dropped, for classifier-free guidance."""
    drop_host: float = bounded(0.0, at_least=0, below=1)
    """Rate at which the first modality's parts before the last are dropped and others kept, for guidance by each."""
    given_loss: bool = True
    """Whether parts that a task gives are learned as well, as far as later tokens see them (ids in Chameleon,
    noised images in Transfusion). false: a task teaches its last part alone."""
    pad_rows_to: int = bounded(32, at_least=1)
    """Every tower's rows are padded to a multiple of this, so that sizes rarely change."""
    num_workers: int = bounded(1, at_least=0)
    """Loader threads that pack ahead; 0 packs in the training thread."""


@dataclass
class TrainConfig(Checked):
    """The training loop."""

    SECTION: ClassVar[str] = "train"

    steps: int = bounded(1000, at_least=1)
    """Optimizer steps."""
    minutes: float = bounded(0.0, at_least=0)
    """If above 0, train for this long and not for `steps`: the decay of the learning rate follows the elapsed time, the
    warm-up still counts steps."""
    accumulate: int = bounded(1, at_least=1)
    """Batches per optimizer step, of each rank. On a CPU they are computed in parallel, one thread each."""
    global_batch_tokens: int = bounded(0, at_least=0)
    """Tokens per optimizer step, of all ranks together: `accumulate` follows from it, data.batch_tokens and the number
    of ranks, so that a step is the same on any number of them. 0: `accumulate` says."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the matrices of the blocks, AdamW for the rest, by one learning rate (arXiv 2502.16982). Its
    own work does not grow with the batch, so its share of a step falls as batches grow."""
    muon_rows: int = bounded(0, at_least=0)
    """Rows of a matrix that Muon makes orthogonal together, where they divide it; 0: all. The width of a head treats
    heads apart and costs a fraction of the products."""
    learning_rate: float = bounded(1e-3, above=0)
    """Peak learning rate."""
    final_learning_rate: float = bounded(0.0, at_least=0)
    """Learning rate at the last step."""
    warmup_steps: int = bounded(100, at_least=0)
    """Steps of the linear warm-up; 0: none."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Decay after the warm-up."""
    betas: list[float] = bounded(lambda: [0.9, 0.95], at_least=0, below=1)
    """AdamW's betas."""
    eps: float = bounded(1e-8, above=0)
    """AdamW's epsilon."""
    weight_decay: float = bounded(0.1, at_least=0)
    """Decay of the blocks' and heads' matrices; embeddings, norms and biases do not decay."""
    clip: float = bounded(1.0, above=0)
    """Largest gradient norm."""
    z_loss: float = bounded(1e-5, at_least=0)
    """Weight of log^2 Z (Chameleon)."""
    normalize: Literal["all_tokens", "per_modality"] = "all_tokens"
    """all_tokens: one mean over all discrete tokens (Chameleon). per_modality: a mean for each of them.
    A diffusion loss is always a mean over its items (images, clips). The losses are then added by `loss_weight`."""
    precision: Literal["float32", "bfloat16", "float8"] = "float32"
    """Precision of the forward pass; parameters stay in float32. bfloat16 is float32 where the device has no
    instructions for it (CPUs that end at AVX2, GPUs before Ampere): it would be many times slower. float8 is that of
    large products, the rest is bfloat16 (CUDA from compute capability 8.9 on, with torchao)."""
    compile: bool = False
    """torch.compile each block."""
    ema: float = bounded(0.0, at_least=0, below=1)
    """Decay of averaged weights, which samples and figures are made with; 0 keeps none."""
    checkpoint_activations: Literal["none", "full", "selective"] = "none"
    """What is recomputed in the backward pass to save memory: nothing, each block, or its cheap parts."""
    device: str = "auto"
    """cpu, cuda, cuda:0, mps, or auto: CUDA where there is a GPU, else the CPU. Apple's mps is used only where it is
    named, as no test runs on it."""
    init_from: str = ""
    """A checkpoint or saved model of the same architecture and ids to start from (weights only); or hf: and a dense
    language model (folder, GGUF file or name on the Hub) for a model of one tower."""
    log_every: int = bounded(10, at_least=1)
    """Steps between log lines."""
    validate_every: int = bounded(250, at_least=1)
    """Steps between validations."""
    validation_batches: int = bounded(8, at_least=0)
    """Packed batches per validation split and task during training; 0 turns validation off."""
    sample_every: int = bounded(0, at_least=0)
    """Steps between samples; 0 draws none during training."""
    evaluate_every: int = bounded(0, at_least=0)
    """Steps between evaluations of what the model makes (`plait evaluate`), on the averaged weights; 0: none."""
    evaluate_items: int = bounded(50, at_least=1)
    """Most items of each kind in an evaluation during training."""
    checkpoint_every: int = bounded(250, at_least=1)
    """Steps between checkpoints."""
    checkpoint_seconds: float = bounded(60.0, at_least=0)
    """Also write one after this many seconds; 0 never."""
    keep_checkpoints: int = bounded(2, at_least=1)
    """Newest checkpoints kept."""
    keep_every: int = bounded(0, at_least=0)
    """Also keep those of steps that are a multiple of this; 0 keeps none besides the newest."""
    max_bad_steps: int = bounded(10, at_least=0)
    """Steps with a loss or gradient that is not finite are skipped and counted; more than this stop the run (0: the
    first one does)."""
    watchdog_seconds: float = bounded(1800.0, at_least=0)
    """With several ranks: seconds without progress after which a rank is reported and all exit; 0 never. Longer than a
    validation, and than the samples that rank 0 makes."""
    trackers: list[str] = field(default_factory=list)
    """Also log to: tensorboard, wandb, trackio."""
    profile: list[int] = bounded(list, at_least=1)
    """First and last step that torch's profiler records into <out>/profile, such as [20, 22]; [] records none. Such
    steps are slower."""
    peak_tflops: float = bounded(0.0, at_least=0)
    """What one device can do, in TFLOP/s, for the share of it that is logged (mfu); 0: by the data sheet of a known GPU
    in bfloat16, else mfu is null."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.betas) == 2, "train.betas", self.betas, "two numbers in [0, 1)")
        good = not self.profile or (len(self.profile) == 2 and self.profile[0] <= self.profile[1])
        require(good, "train.profile", self.profile, "the first and the last step, such as [20, 22], or []")


@dataclass
class ParallelConfig(Checked):
    """How the ranks of a launch share the work: replicate x shard x context x tensor of them. One process needs none.

    docs/parallel.md says which to choose.
    """

    SECTION: ClassVar[str] = "parallel"

    shard: int = bounded(0, at_least=0)
    """Ranks that one copy of weights and optimizer is sharded over, each with its own batches (FSDP). 0: all remaining
    ranks."""
    replicate: int = bounded(1, at_least=1)
    """Copies of what `shard` ranks share, such as one for each machine (HSDP)."""
    context: int = bounded(1, at_least=1)
    """Ranks that share the tokens of one batch: rows everywhere, heads in attention. For long sequences."""
    tensor: int = bounded(1, at_least=1)
    """Ranks that share every matrix of every tower: heads, hidden sizes, the ids. Within one machine."""


@dataclass
class EvaluateConfig(Checked):
    """Evaluation (plait evaluate)."""

    SECTION: ClassVar[str] = "evaluate"

    batches: int = bounded(0, at_least=0)
    """Packed batches per split and task; 0 means all."""
    captions: int = bounded(400, at_least=0)
    """Items to caption in each validation split; 0 skips it."""
    choices: int = bounded(150, at_least=0)
    """Items for the 400-way forced choice of captions; 0 skips it."""
    images: int = bounded(200, at_least=0)
    """Images to generate from captions for the reference classifier and the Fréchet distance; 0 skips it."""
    clips: int = bounded(100, at_least=0)
    """Clips to generate from captions for the speech recogniser; 0 skips it."""
    items: int = bounded(100, at_least=0)
    """Items of other media to generate for their codec's own judge; 0 skips it."""
    pairs: int = bounded(50, at_least=0)
    """Items to generate from each other modality that is not the text; 0 skips it."""
    round_trips: int = bounded(50, at_least=0)
    """Items to send there and back, such as text to image to text; 0 skips it."""
    free: int = bounded(50, at_least=0)
    """Documents to generate from nothing; 0 skips it."""
    every_split: bool = True
    """Whether images, speech and other media are made of every validation split, as texts are; else of the first."""
    trials: int = bounded(100, at_least=0)
    """Episodes in which a model that acts is tried, where its data come from environments; 0 skips it."""
    baseline_minutes: float = bounded(0.0, at_least=0)
    """Minutes that a plain network is trained for on the same documents, to be tried beside it; 0: none."""
    neighbours: int = bounded(2000, at_least=1)
    """Training items, the first ones, among which the nearest to each made item is sought."""
    features: str = "efficientnet-lite0"
    """What images are compared by: efficientnet-lite0, inception, inception:FILE of its weights, or a vision model of
    transformers (DINOv2, CLIP, ...) by folder or Hub name."""
    clip: str = ""
    """Folder or Hub name of the CLIP model for CLIP scores; empty: none."""
    sentences: str = ""
    """Folder or Hub name of the sentence embedding model for sentence similarity; empty: none."""
    recogniser: str = ""
    """What transcribes made speech in any words: pocketsphinx (US English), or a speech recognition model of
    transformers by folder or Hub name; empty: a choice among the texts."""
    dnsmos: bool = False
    """Whether DNSMOS rates how natural made speech sounds (packages speechmos and onnxruntime)."""
    aims: dict[str, float] = field(default_factory=dict)
    """Target values of figures of summary.json, by name; the report says which fell short."""


@dataclass
class RunConfig(Checked):
    """One run: one YAML file."""

    model: ModelConfig
    modalities: dict[str, ModalitySettings] = field(default_factory=dict)
    """What the run says of each of the model's modalities; in YAML, in their records of `model`."""
    towers: dict[str, TowerSettings] = field(default_factory=dict)
    """How the run trains each of the model's towers; in YAML, in their records of `model`."""
    name: str = "run"
    """Name shown in the report."""
    out: str = ""
    """Folder of the run. Empty: runs/<name>."""
    seed: int = 0
    """Seed of every random draw."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    schema_version: int = SCHEMA_VERSION
    """Version of this file's form."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.modalities = records_of("modalities", self.modalities, self.model.modalities)
        self.towers = self._with_frozen(records_of("towers", self.towers, self.model.towers))
        self._check_inputs()
        require(bool(self.out or self.name), "name", self.name, "not empty where out is, as the folder is runs/<name>")
        self.out = self.out or f"runs/{self.name}"
        self.data.path = self.data.path or f"{self.out}/data"
        require(self.schema_version == SCHEMA_VERSION, "schema_version", self.schema_version, str(SCHEMA_VERSION))
        dropped = self.data.drop_condition + self.data.drop_host
        require(dropped < 1, "data.drop_host", self.data.drop_host, "below 1 together with data.drop_condition")
        for where, tasks in self._named_tasks():
            self._check_tasks(where, tasks)
        require(not self.train.global_batch_tokens or self.train.accumulate == 1, "train.accumulate",
                self.train.accumulate, "1 where train.global_batch_tokens is set, which it follows from")  # fmt: skip
        self._check_parallel()
        for name, modality in self.model.modalities.items():
            require(modality.predicts == "target" or self.diffusion.of(name).process == "flow",
                    f"model.modalities.{name}.predicts", modality.predicts,
                    "target where diffusion.process is ddpm")  # fmt: skip
        continuous = [name for name, m in self.model.modalities.items() if m.objective == "diffusion"]
        for name in self.diffusion.by_modality:
            if name not in continuous:
                raise ConfigError(unknown("diffusion.by_modality", name, continuous))
        made = [name for name, m in self.model.modalities.items() if m.objective != "input"]
        for name in (*self.generate.sampling, *self.generate.max_tokens, *self.generate.grids):
            if name not in made:
                raise ConfigError(unknown("generate", name, made))
        for name, sampling in self.generate.sampling.items():
            if self.model.modalities[name].objective == "diffusion":
                check_sampler(self.diffusion.of(name), sampling.sampler, sampling.steps, f"generate.sampling.{name}")

    @property
    def frozen_towers(self) -> list[str]:
        """The towers whose own parameters stay as they are, but for `lora`."""
        return fixed_towers(self.model, self.towers)

    def _with_frozen(self, towers: dict[str, TowerSettings]) -> dict[str, TowerSettings]:
        """Return towers of which each says whether it is frozen; refuse what leaves nothing to train."""
        adapted = [name for name, tower in self.model.towers.items() if tower.lora]
        for name in adapted:
            require(not towers[name].frozen, f"model.towers.{name}.frozen", True,
                    "left out beside lora, which fixes all other parameters of the tower")  # fmt: skip
        unset = {name for name, tower in towers.items() if tower.frozen is None}
        towers = {n: replace(t, frozen=bool(adapted) and n not in adapted) if n in unset else t
                  for n, t in towers.items()}  # fmt: skip
        require(bool(adapted) or not all(tower.frozen for tower in towers.values()), "model.towers",
                {name: "frozen" for name in towers}, "towers of which one at least trains")  # fmt: skip
        return towers

    def _check_inputs(self) -> None:
        """Refuse to learn, predict or name as a part what is read alone; its loss weighs nothing."""
        inputs = {name: m for name, m in self.model.modalities.items() if m.objective == "input"}
        for name, m in inputs.items():
            where, settings = f"model.modalities.{name}", self.modalities[name]
            for field_name, plain in (("loss_weight", (0.0, 1.0)), ("final_loss_weight", (None, 0.0))):
                value = getattr(settings, field_name)
                require(value in plain, f"{where}.{field_name}", value,
                        "left out where the objective is input: it is read and never learned")  # fmt: skip
            require(not (m.reads and settings.key), f"{where}.key", settings.key,
                    f"left out beside reads: its parts are those of {m.reads!r}")  # fmt: skip
            self.modalities[name] = replace(settings, loss_weight=0.0)
        for where, task in ((w, t) for w, tasks in self._named_tasks() for t in tasks):
            mentions = mentions_of(task)
            for name in mentions:
                read = inputs[name].reads if name in inputs else ""
                require(not read, f"{where} ({task!r})", name, f"{read!r}, whose given parts {name!r} reads")
            require(mentions[-1] not in inputs, f"{where} ({task!r})", mentions[-1],
                    "given, not predicted: its objective is input")  # fmt: skip

    def _named_tasks(self) -> list[tuple[str, dict[str, float]]]:
        """Return the tasks of the data, and those of sources that have their own, by the names of their settings."""
        sources = {n: s for n, s in self.data.sources.items() if isinstance(s, SourceConfig)}
        return [("data.tasks", self.data.tasks), *((f"data.sources.{n}.tasks", s.tasks) for n, s in sources.items())]

    def _check_tasks(self, where: str, tasks: dict[str, float]) -> None:
        for task in tasks:
            for name in [*mentions_of(task), *lacking(task)] if task != AS_WRITTEN_TASK else []:
                if name not in self.model.modalities:
                    raise ConfigError(unknown(f"{where} ({task!r})", name, [*self.model.modalities, AS_WRITTEN_TASK]))
        require(not tasks or any(tasks.values()), where, tasks, "weights of which one at least is above 0")

    def _check_parallel(self) -> None:
        """Refuse what no number of ranks could do; plait.train.parallel checks the number."""
        parallel, model = self.parallel, self.model
        heads = model.num_kv_heads or model.num_heads
        tensor, together = parallel.tensor, parallel.tensor * parallel.context
        require(heads % together == 0, "parallel.tensor x parallel.context", together,
                f"a divisor of model.num_kv_heads ({heads})")  # fmt: skip
        for name, tower in model.towers.items():
            require((tower.ffn_width or 0) % tensor == 0, "parallel.tensor", tensor,
                    f"a divisor of model.towers.{name}.ffn_width ({tower.ffn_width})")  # fmt: skip
            alone = tower.ffn != "moe" or tower.moe_routing == "token_choice"
            require(alone or parallel.context == 1, "parallel.context", parallel.context,
                    f"1: model.towers.{name} routes by expert_choice, which compares whole batches")  # fmt: skip
        for name, command in {"sample_every": "generate", "evaluate_every": "evaluate"}.items():
            steps = getattr(self.train, name)
            require(together == 1 or not steps, f"train.{name}", steps,
                    f"0 where parallel.tensor or parallel.context is above 1: plait {command} does it")  # fmt: skip
