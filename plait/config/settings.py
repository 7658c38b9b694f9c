"""The one table of what each setting of a run decides, and the comparison of settings that follows from it.

Settings have the dotted names of a config's YAML; ``*`` stands for the name of a modality or a tower. Whoever asks
whether a folder, a checkpoint or a result belongs to a config asks here: prepare, train, the loader's position,
evaluate, report, generate and compare.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from plait.common.errors import ConfigError
from plait.config.file import to_dict
from plait.config.run import WORLDS, RunConfig

FIXED = "fixed for the run"
"""What the weights and the optimizer's state are."""
DATA = "decides the prepared data"
SCENES = "decides the prepared data, for scenes"
MANIFESTS = "decides the prepared data, for your own data"
STREAM = "decides the order of documents"
TRAINED = "can be changed; affects training from then on"
MEASURED = "can be changed; affects figures and samples"
FREE = "can be changed; affects no result"

PREPARED = (DATA, SCENES, MANIFESTS)
BEGUN = (FIXED, *PREPARED, STREAM)
"""What a run may not change once it has a checkpoint."""
RESULTS = (FIXED, STREAM, TRAINED)
"""What the losses of a run on given data follow from."""

_NAMES = {
    FIXED: """
        schema_version
        model.modalities model.modalities.*.objective model.modalities.*.attention
        model.modalities.*.attention_by_role model.modalities.*.tower model.modalities.*.tower_by_role
        model.modalities.*.tower_by_noise model.modalities.*.tower_at_random model.modalities.*.later_sees
        model.modalities.*.vocab_size model.modalities.*.latent_channels model.modalities.*.patch_size
        model.modalities.*.patch_network model.modalities.*.place_embedding model.modalities.*.predicts
        model.modalities.*.reads model.modalities.*.beside
        model.towers model.towers.*.width model.towers.*.ffn_width model.towers.*.ffn model.towers.*.num_experts
        model.towers.*.top_k model.towers.*.moe_routing model.towers.*.init_from model.towers.*.narrow
        model.towers.*.zero_output model.towers.*.qk_norm model.towers.*.cross_key_norm model.towers.*.qkv_bias
        model.towers.*.norm_eps model.towers.*.rope_theta model.towers.*.rope_scaling model.towers.*.lora
        model.width model.num_layers model.num_heads model.num_kv_heads model.head_dim model.ffn_width
        model.norm_order model.norm_eps model.qk_norm model.qkv_bias model.rope_theta model.rope_scaling
        model.unrotated_layers model.bos model.eos model.stops
        model.position_axes model.untied model.tie_embeddings model.max_positions
        train.optimizer train.init_from diffusion.process diffusion.num_timesteps diffusion.by_modality""",
    DATA: """
        seed model.modalities model.modalities.*.codec model.modalities.*.codec_options model.modalities.*.key
        model.modalities.*.reads
        prepare.source prepare.codecs_from prepare.codec_documents prepare.codec_minutes prepare.shard_documents
        prepare.episodes.chunk prepare.episodes.stride prepare.episodes.history prepare.episodes.next_share
        prepare.episodes.tasks prepare.episodes.max_steps""",
    SCENES: """
        prepare.documents prepare.validation_documents prepare.concepts prepare.passages prepare.image_size
        prepare.drawings""",
    MANIFESTS: "prepare.columns prepare.allow_outside prepare.validation_share",
    STREAM: """
        seed data.sources data.batch_tokens data.max_document_tokens data.too_long data.tasks data.drop_condition
        data.drop_host data.given_loss""",
    TRAINED: """
        model.modalities.*.loss_weight model.modalities.*.final_loss_weight
        model.towers.*.frozen model.towers.*.learning_rate_scale model.towers.*.moe_balance_rate
        train.steps train.minutes train.accumulate train.global_batch_tokens train.muon_rows train.learning_rate
        train.final_learning_rate train.warmup_steps train.schedule train.betas train.eps train.weight_decay train.clip
        train.z_loss train.normalize train.precision train.compile train.ema train.checkpoint_activations
        train.validate_every train.validation_batches train.max_bad_steps
        diffusion.max_level_first diffusion.levels diffusion.beta diffusion.logit_mean diffusion.logit_std
        diffusion.shift
        data.pad_rows_to parallel.shard parallel.replicate parallel.context parallel.tensor""",
    MEASURED: """
        generate.sampling generate.max_tokens generate.grids generate.batch_size generate.precision generate.cache
        generate.page_size generate.cache_tokens generate.cuda_graphs generate.speculate
        evaluate.batches evaluate.captions evaluate.choices evaluate.images evaluate.clips evaluate.items
        evaluate.every_split evaluate.pairs evaluate.trials evaluate.baseline_minutes
        evaluate.round_trips evaluate.free evaluate.neighbours
        evaluate.features evaluate.clip evaluate.sentences evaluate.recogniser evaluate.dnsmos
        train.precision diffusion.max_level_first diffusion.levels diffusion.beta diffusion.logit_mean
        diffusion.logit_std diffusion.shift""",
    FREE: """
        name out data.path data.num_workers prepare.num_workers prepare.max_broken_share train.device train.log_every
        train.sample_every train.evaluate_every train.evaluate_items train.checkpoint_every train.checkpoint_seconds
        train.keep_checkpoints train.keep_every train.watchdog_seconds train.trackers train.profile train.peak_tflops
        evaluate.aims""",
}

KINDS: dict[str, tuple[str, ...]] = {}
"""What each setting decides; a few decide two things."""
for _kind, _names in _NAMES.items():
    for _name in _names.split():
        KINDS[_name] = (*KINDS.get(_name, ()), _kind)

_NAMED = ("model.modalities", "model.towers")
"""Settings whose keys are names that the user gives."""
_CODECS_OWN = re.compile(r"model\.(modalities\..*\.(vocab_size|latent_channels|patch_size)|bos|eos|stops)")


def kinds_of(name: str) -> tuple[str, ...]:
    """Return what a setting decides; raises KeyError for one that is not in the table."""
    return KINDS[_pattern(name)]


def _pattern(name: str) -> str:
    return re.sub(r"^(model\.(?:modalities|towers))\..*\.([^.]+)$", r"\1.*.\2", name)


def flat(config: RunConfig | dict[str, Any]) -> dict[str, Any]:
    """Return every setting by its dotted name, in the table's order, as the plain values that JSON holds.

    ``config`` may be what `plait.config.file.to_dict` returned; settings that it lacks are left out.
    """
    settings: dict[str, Any] = {}
    _collect(to_dict(config) if isinstance(config, RunConfig) else config, "", settings)
    positions = {name: i for i, name in enumerate(KINDS)}
    ordered = sorted(settings, key=lambda name: positions.get(_pattern(name), len(positions)))
    return json.loads(json.dumps({name: settings[name] for name in ordered}))


def _collect(values: dict[str, Any], name: str, settings: dict[str, Any]) -> None:
    for key, value in values.items():
        inner = f"{name}.{key}" if name else str(key)
        if inner in _NAMED:
            settings[inner] = list(value)
        if inner in _NAMED or name in _NAMED or any(known.startswith(f"{inner}.") for known in KINDS):
            _collect(value, inner, settings)
        else:
            settings[inner] = value


def identity(config: RunConfig | dict[str, Any], kinds: Iterable[str]) -> dict[str, Any]:
    """Return the settings of some kinds in the form in which they count: equal where they decide the same.

    An order is kept where it decides something (modalities, tasks, sources); places of files are left out.
    """
    # what another version kept may have settings that are no more: nothing here follows from them
    values = {name: v for name, v in flat(config).items() if _pattern(name) in KINDS}
    kinds = set(kinds)
    settings = {name: v for name, v in values.items() if kinds.intersection(kinds_of(name))}
    source = values.get("prepare.source", "scenes")
    is_made = source in WORLDS
    unused = MANIFESTS if is_made else SCENES
    settings = {name: v for name, v in settings.items() if kinds_of(name) != (unused,)}
    if "prepare.source" in settings:  # a manifest may move; `plait prepare` compares its contents
        settings["prepare.source"] = source if is_made else "manifests"
    if "model.towers" in settings:
        settings["model.towers"] = sorted(settings["model.towers"])
    if "data.tasks" in settings:
        settings["data.tasks"] = [list(item) for item in settings["data.tasks"].items()]
    if "data.sources" in settings:
        sources = list(settings["data.sources"].values()) or [1.0]
        settings["data.sources"] = [_source(s if isinstance(s, dict) else {"weight": float(s)}) for s in sources]
    if "data.max_document_tokens" in settings:
        longest = min(values["data.batch_tokens"], values["model.max_positions"])
        settings["data.max_document_tokens"] = settings["data.max_document_tokens"] or longest
    return settings


def _source(given: dict[str, Any]) -> dict[str, Any]:
    """Return a source as it counts; its own tasks stand there where it has some."""
    tasks = [list(item) for item in given.get("tasks", {}).items()]
    plain = {"weight": 1.0, "when_exhausted": "repeat"} | {n: v for n, v in given.items() if n != "tasks"}
    return plain | ({"tasks": tasks} if tasks else {})


def check_same(before: dict[str, Any], now: dict[str, Any], begun: str, cure: str) -> None:
    """Raise a ConfigError that names the first setting of an `identity` in which two differ.

    ``begun`` is what was begun with the settings before, ``cure`` says what a user can do. A setting that only one of
    them knows is not compared: names of modalities and towers are their own settings. A size of 0 is the codec's
    own, whichever that is.
    """
    for name, value in now.items():
        if name not in before or before[name] == value or (_CODECS_OWN.fullmatch(name) and not value):
            continue
        order = ""
        if isinstance(value, list) and isinstance(before[name], list):
            same = sorted(map(json.dumps, value)) == sorted(map(json.dumps, before[name]))
            order = " (their order counts)" if same else ""
        raise ConfigError(
            f"{name}: {_shown(value)} differs from {_shown(before[name])}{order}, which {begun} was made with; {cure}"
        )


def _shown(value: Any) -> str:
    """Return a value as a user wrote it: pairs are a mapping."""
    is_pairs = isinstance(value, list) and value and all(isinstance(v, list) and len(v) == 2 for v in value)
    return repr(dict(value)) if is_pairs else repr(value)
