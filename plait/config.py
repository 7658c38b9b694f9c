"""Every setting of plait, as dataclasses that check themselves. `plait.config_file` reads them from YAML."""

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

from plait.errors import ConfigError, require, unknown
from plait.layout import IdLayout

SCHEMA_VERSION = 1
COMPONENTS = ("qkv", "o", "ffn", "norm")


@dataclass
class ModalityConfig:
    """One kind of data that flows through the model."""

    codec: str = ""
    """Name of the codec (see plait/codecs): what turns raw media into ids or latents and back."""
    codec_options: dict[str, Any] = field(default_factory=dict)
    """Settings of that codec; checked by the codec itself."""
    objective: Literal["next_token", "diffusion"] = "next_token"
    """next_token: discrete ids, cross-entropy. diffusion: continuous latents, denoising."""
    attention: Literal["causal", "bidirectional"] = "causal"
    """Attention inside one span of this modality. Bidirectional needs a continuous objective."""
    tower: str = ""
    """Tower that carries these tokens. Empty: the tower of the modality's own name."""
    tower_by_role: dict[str, str] = field(default_factory=dict)
    """Towers for spans of a certain role (understanding, generation), where that differs from `tower`."""
    loss_weight: float = 1.0
    """Factor of this modality's loss in the total."""
    vocab_size: int = 0
    """Number of ids reserved for the codec (discrete). Training takes the codec's own number where this is 0."""
    latent_channels: int = 0
    """Numbers per token (continuous). Training takes the codec's own where this is 0."""


@dataclass
class TowerConfig:
    """One set of parameters. Unset sizes are the model's."""

    width: int | None = None
    """Size of the hidden state in this tower."""
    ffn_width: int | None = None
    """Hidden size of the feed-forward network; of one expert when ffn is moe."""
    ffn: Literal["swiglu", "moe"] = "swiglu"
    """Kind of feed-forward network."""
    num_experts: int = 4
    """Experts, when ffn is moe."""
    top_k: int = 1
    """Experts per token, when ffn is moe (the mean number for expert_choice)."""
    moe_routing: Literal["expert_choice", "token_choice"] = "token_choice"
    """expert_choice sees the whole batch (not causal, cannot generate); token_choice is causal and dropless."""
    moe_balance_rate: float = 1e-3
    """Step of the expert bias that balances token_choice (arXiv 2408.15664)."""
    frozen: bool = False
    """Keep this tower's own parameters fixed."""
    init_from: str = ""
    """A saved model whose tower of the same or only name initialises this one."""
    learning_rate_scale: float = 1.0
    """Factor of the learning rate for this tower's own parameters."""


@dataclass
class ModelConfig:
    """The Mixture-of-Transformers: its modalities, towers and shape (paper, sections 2 and 3)."""

    modalities: dict[str, ModalityConfig] = field(default_factory=dict)
    """Modalities in append-only order. The first one hosts the delimiters and is written without them."""
    towers: dict[str, TowerConfig] = field(default_factory=dict)
    """Towers by name. Empty: one for each name that the modalities use."""
    width: int = 256
    """Size of the hidden state, for towers that set none."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 8
    """Attention heads (global: every tower's queries meet in one attention)."""
    num_kv_heads: int | None = None
    """Key and value heads; fewer than num_heads is grouped-query attention. Unset: num_heads."""
    head_dim: int | None = None
    """Size of one head. Unset: width / num_heads."""
    ffn_width: int | None = None
    """Hidden size of the feed-forward network. Unset: 8/3 of the width, rounded up to 256 (64 below width 256)."""
    norm_order: Literal["pre", "post"] = "pre"
    """pre: x + f(norm(x)). post: x + norm(f(x)), the paper's equations and Chameleon-34B."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    qk_norm: bool = True
    """RMSNorm on queries and keys over head_dim, one per tower (Chameleon found it essential)."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: float = 1.0
    """Positions are divided by this (linear interpolation for longer contexts)."""
    position_axes: list[str] = field(default_factory=lambda: ["sequence"])
    """Axes of a position: one is the usual RoPE, several (time, height, width) share one frequency ladder (mRoPE)."""
    untied: list[str] | dict[str, list[str]] = field(default_factory=lambda: list(COMPONENTS))
    """Components with one copy per tower: of qkv, o, ffn, norm. A mapping from layer ranges ("0-3", "4") sets it
    per layer; layers not named there are shared."""
    tie_embeddings: bool = False
    """Use the embedding table as the output head."""
    max_positions: int = 8192
    """Longest document, in tokens."""

    def __post_init__(self):
        require(len(self.modalities) > 0, "model.modalities", {}, "a mapping with at least one modality")
        require(self.num_layers >= 1, "model.num_layers", self.num_layers, "at least 1")
        require(self.num_heads >= 1, "model.num_heads", self.num_heads, "at least 1")
        require(self.width >= 1, "model.width", self.width, "at least 1")
        require(self.rope_scaling > 0, "model.rope_scaling", self.rope_scaling, "above 0")
        require(self.norm_eps > 0, "model.norm_eps", self.norm_eps, "above 0")
        self.num_kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        require(
            1 <= self.num_kv_heads <= self.num_heads and self.num_heads % self.num_kv_heads == 0,
            "model.num_kv_heads", self.num_kv_heads, f"a divisor of num_heads ({self.num_heads})",
        )  # fmt: skip
        if self.head_dim is None:
            require(self.width % self.num_heads == 0, "model.width", self.width,
                     f"a multiple of num_heads ({self.num_heads}) where head_dim is unset")  # fmt: skip
            self.head_dim = self.width // self.num_heads
        axes = len(self.position_axes)
        require(axes >= 1, "model.position_axes", self.position_axes, "a list of at least one axis name")
        require(self.head_dim % 2 == 0 and self.head_dim // 2 >= axes, "model.head_dim", self.head_dim,
                 f"even and at least {2 * axes}")  # fmt: skip
        self._fill_towers()
        self._check_modalities()
        self._check_untied()

    def _fill_towers(self):
        for name, modality in self.modalities.items():
            modality.tower = modality.tower or name
        used = [t for m in self.modalities.values() for t in (m.tower, *m.tower_by_role.values())]
        if not self.towers:
            self.towers = {name: TowerConfig() for name in dict.fromkeys(used)}
        for name, modality in self.modalities.items():
            for tower in (modality.tower, *modality.tower_by_role.values()):
                if tower not in self.towers:
                    raise ConfigError(unknown(f"model.modalities.{name}.tower", tower, self.towers))
        for name, tower in self.towers.items():
            require(name in used, "model.towers", name, "the tower of some modality (none uses it)")
            require(name != "shared", "model.towers", name, "another name: that one is for what towers share")
            tower.width = self.width if tower.width is None else tower.width
            require(tower.width >= 1, f"model.towers.{name}.width", tower.width, "at least 1")
            if tower.ffn_width is None:
                tower.ffn_width = self.ffn_width or default_ffn_width(tower.width)
            if tower.ffn == "moe":
                where = f"model.towers.{name}"
                require(tower.num_experts >= 1, f"{where}.num_experts", tower.num_experts, "at least 1")
                require(1 <= tower.top_k <= tower.num_experts, f"{where}.top_k", tower.top_k,
                         f"between 1 and num_experts ({tower.num_experts})")  # fmt: skip

    def _check_modalities(self):
        for i, (name, m) in enumerate(self.modalities.items()):
            where = f"model.modalities.{name}"
            require(name.isidentifier(), "model.modalities", name, "a name of letters, digits and underscores")
            if m.objective == "next_token":
                require(m.attention == "causal", f"{where}.attention", m.attention,
                         "causal where the objective is next_token (a later id would leak)")  # fmt: skip
            require(i > 0 or m.objective == "next_token", f"{where}.objective", m.objective,
                     "next_token for the first modality, which hosts the delimiters")  # fmt: skip
            require(m.vocab_size >= 0, f"{where}.vocab_size", m.vocab_size, "0 or more")
            require(m.loss_weight >= 0, f"{where}.loss_weight", m.loss_weight, "0 or more")

    def _check_untied(self):
        for layer in range(self.num_layers):
            for component in COMPONENTS:
                if component not in self.untied_at(layer):
                    self._check_shared(layer, component)

    def _check_shared(self, layer: int, component: str):
        widths = {t.width for t in self.towers.values()}
        where = f"model.untied (layer {layer})"
        require(len(widths) == 1, where, sorted(self.untied_at(layer)),
                 f"a list with {component!r}: towers of different width cannot share it")  # fmt: skip
        kinds = {(t.ffn, t.ffn_width, t.num_experts, t.top_k, t.moe_routing) if t.ffn == "moe" else
                 (t.ffn, t.ffn_width) for t in self.towers.values()}  # fmt: skip
        require(component != "ffn" or len(kinds) == 1, where, sorted(self.untied_at(layer)),
                 "a list with 'ffn': towers with different feed-forward networks cannot share it")  # fmt: skip

    def untied_at(self, layer: int) -> frozenset[str]:
        """Return the components that have one copy per tower in this layer."""
        if isinstance(self.untied, list):
            names = self.untied
        else:
            ranges = {r: _layer_range(r, self.num_layers) for r in self.untied}
            names = [c for r, components in self.untied.items() if layer in ranges[r] for c in components]
        for name in names:
            if name not in COMPONENTS:
                raise ConfigError(unknown("model.untied", name, COMPONENTS))
        return frozenset(names)

    @functools.cached_property
    def layout(self) -> IdLayout:
        """The shared id space of all modalities."""
        return IdLayout.of({name: m.vocab_size for name, m in self.modalities.items()})

    @property
    def same_width(self) -> bool:
        """Whether all towers have one width, so that embedding and head can be shared."""
        return len({t.width for t in self.towers.values()}) == 1


def _layer_range(text: str, num_layers: int) -> range:
    first, _, last = str(text).partition("-")
    allowed = f"a layer or a range like '0-3' within 0-{num_layers - 1}"
    require(first.isdigit() and (last or first).isdigit(), "model.untied", text, allowed)
    start, stop = int(first), int(last or first)
    require(start <= stop < num_layers, "model.untied", text, allowed)
    return range(start, stop + 1)


def default_ffn_width(width: int) -> int:
    """Return 2/3 of four times the width, rounded up to a multiple of 256 (of 64 for widths below 256)."""
    step = 256 if width >= 256 else 64
    return -(-(8 * width // 3) // step) * step


@dataclass
class PrepareConfig:
    """Raw media to encoded shards (plait prepare)."""

    source: str = "scenes"
    """"scenes" (drawn from OpenMoji and spoken by eSpeak) or the path of a JSONL or Parquet manifest."""
    documents: int = 16000
    """Training documents to draw (scenes)."""
    validation_documents: int = 400
    """Documents in each validation split (scenes)."""
    validation_share: float = 0.02
    """Share of documents held out for validation (manifest), chosen by a hash of their content."""
    image_size: int = 32
    """Side of a drawn scene, in pixels (scenes)."""
    codecs_from: str = ""
    """A prepared folder whose codecs are used, so that both can be mixed. Empty: codecs are made here."""
    codec_documents: int = 3000
    """Documents that the codecs are trained on."""
    codec_minutes: float = 2.5
    """Time each trained codec may take, on this machine's cores."""
    max_broken_share: float = 0.05
    """More broken rows than this share stop the run (manifest)."""
    num_workers: int = 0
    """Worker processes; 0 means one for each core. The result does not depend on it."""
    shard_documents: int = 2048
    """Documents in one shard."""


@dataclass
class DataConfig:
    """From encoded shards to packed batches."""

    path: str = ""
    """Folder made by plait prepare. Empty: the run's own `data` folder."""
    sources: dict[str, float] = field(default_factory=dict)
    """More prepared folders with their weights, mixed in place of `path`."""
    batch_tokens: int = 4096
    """Tokens in one packed batch."""
    max_document_tokens: int = 0
    """Longest document; 0 means batch_tokens."""
    too_long: Literal["split", "truncate", "skip"] = "split"
    """What happens to a longer document; counted in either case."""
    tasks: dict[str, float] = field(default_factory=dict)
    """Weights of part orders, such as "text,image": the modalities given first, the last one predicted from them.
    Empty: documents keep their parts as written."""
    drop_condition: float = 0.1
    """Rate at which all parts before the last are dropped, for classifier-free guidance."""
    pad_rows_to: int = 32
    """Every tower's rows are padded to a multiple of this, so that sizes rarely change."""
    num_workers: int = 1
    """Loader threads that pack ahead."""


@dataclass
class TrainConfig:
    """The training loop."""

    steps: int = 1000
    """Optimizer steps."""
    minutes: float = 0.0
    """If above 0, the schedule is fitted to this time instead: `steps` is set after the first steps are timed."""
    accumulate: int = 1
    """Batches per optimizer step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    final_learning_rate: float = 0.0
    """Learning rate at the last step."""
    warmup_steps: int = 100
    """Linear warm-up."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Decay after the warm-up."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's betas."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
    clip: float = 1.0
    """Largest gradient norm."""
    z_loss: float = 1e-5
    """Weight of log^2 Z (Chameleon)."""
    normalize: Literal["all_tokens", "per_modality"] = "all_tokens"
    """all_tokens: one mean over all discrete tokens (Chameleon). per_modality: a mean for each, then the weights.
    Diffusion losses are always a mean over images."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; parameters stay in float32."""
    compile: bool = False
    """torch.compile each block."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass to save memory."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:0, mps."""
    init_from: str = ""
    """A checkpoint or saved model to start from (weights only)."""
    log_every: int = 10
    """Steps between log lines."""
    validate_every: int = 250
    """Steps between validations."""
    validation_batches: int = 8
    """Packed batches per validation split and task while training."""
    sample_every: int = 0
    """Steps between samples; 0 means none while training."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    checkpoint_seconds: float = 60.0
    """Also write one after this many seconds."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    max_bad_steps: int = 10
    """Steps with a loss or gradient that is not finite are skipped and counted; more than this stop the run."""
    trackers: list[str] = field(default_factory=list)
    """Also log to: tensorboard, wandb, trackio."""


@dataclass
class DiffusionConfig:
    """Noise and its schedule, for continuous modalities. t = 0 is clean, t = 1 is noise."""

    process: Literal["ddpm", "flow"] = "ddpm"
    """ddpm: epsilon-prediction, cosine schedule. flow: rectified flow."""
    num_timesteps: int = 1000
    """Noise levels of ddpm."""
    max_level_first: float = 0.5
    """Highest noise level of an item that precedes its text."""
    logit_mean: float = 0.0
    """Mean of logit t (flow)."""
    logit_std: float = 1.0
    """Standard deviation of logit t (flow)."""
    shift: float = 1.0
    """Shift of t towards noise (flow)."""


@dataclass
class SamplingConfig:
    """How the next id is drawn."""

    temperature: float = 1.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest ids; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest ids that make up this probability."""
    guidance: float = 1.0
    """Classifier-free guidance: 1 is none."""


@dataclass
class GenerateConfig:
    """Generation (plait generate)."""

    sampling: dict[str, SamplingConfig] = field(default_factory=dict)
    """Sampling by modality."""
    max_tokens: dict[str, int] = field(default_factory=dict)
    """Longest span by modality; images have their own fixed number."""
    batch_size: int = 32
    """Requests decoded together."""


@dataclass
class EvaluateConfig:
    """Evaluation (plait evaluate)."""

    batches: int = 0
    """Packed batches per split and task; 0 means all."""
    captions: int = 400
    """Items to caption in each validation split."""
    choices: int = 150
    """Items whose caption is also chosen among 400 names."""
    pictures: int = 200
    """Pictures to generate from captions for the picture judge; 0 leaves it out."""
    clips: int = 100
    """Clips to generate from captions for the speech judge; 0 leaves it out."""
    judged: int = 400
    """Held-out documents on which the judges compare the codecs' round trip with the originals; 0 leaves it out."""


@dataclass
class RunConfig:
    """One run: one YAML file."""

    model: ModelConfig
    name: str = "run"
    """Name shown in the report."""
    out: str = ""
    """Folder of the run. Empty: runs/<name>."""
    seed: int = 0
    """Seed of every random draw."""
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    schema_version: int = SCHEMA_VERSION
    """Version of this file's form."""

    def __post_init__(self):
        self.out = self.out or f"runs/{self.name}"
        self.data.path = self.data.path or f"{self.out}/data"
        require(self.schema_version == SCHEMA_VERSION, "schema_version", self.schema_version, str(SCHEMA_VERSION))
        require(self.data.batch_tokens >= 1, "data.batch_tokens", self.data.batch_tokens, "at least 1")
        require(self.data.pad_rows_to >= 1, "data.pad_rows_to", self.data.pad_rows_to, "at least 1")
        require(0 <= self.data.drop_condition < 1, "data.drop_condition", self.data.drop_condition, "in [0, 1)")
        require(0 <= self.prepare.max_broken_share <= 1, "prepare.max_broken_share",
                 self.prepare.max_broken_share, "between 0 and 1")  # fmt: skip
        for task in self.data.tasks:
            for name in task.split(","):
                if name not in self.model.modalities:
                    raise ConfigError(unknown(f"data.tasks ({task!r})", name, self.model.modalities))
        for name in ("steps", "accumulate", "log_every", "keep_checkpoints"):
            require(getattr(self.train, name) >= 1, f"train.{name}", getattr(self.train, name), "at least 1")
        require(len(self.train.betas) == 2, "train.betas", self.train.betas, "two numbers")
        for name in (*self.generate.sampling, *self.generate.max_tokens):
            if name not in self.model.modalities:
                raise ConfigError(unknown("generate", name, self.model.modalities))
