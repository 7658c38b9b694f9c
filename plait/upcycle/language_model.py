"""A dense language model as a saved model of one tower, read tensor by tensor."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from plait.codecs.text import PretrainedTokenizerCodec
from plait.common.errors import CheckpointError, ConfigError
from plait.config.modality import ModalityConfig
from plait.config.model import Llama3Rope, ModelConfig
from plait.model.pretrained import SavedWeights, open_saved
from plait.model.rope import frequencies
from plait.model.traits import Place
from plait.upcycle import families, files

HUB = "hf:"
"""What stands before the name of a language model in `init_from`."""
TABLES = ("embed", "head")


@contextlib.contextmanager
def open_weights(source: str, where: str) -> Iterator[SavedWeights]:
    """Open what `init_from` names: a saved model, a checkpoint, or ``hf:`` and a language model."""
    opened = open_language_model(source[len(HUB) :], where) if source.startswith(HUB) else open_saved(source, where)
    with opened as saved:
        yield saved


@dataclass
class LanguageModel(SavedWeights):
    """A language model's weights, with its tokenizer as a codec."""

    codec: PretrainedTokenizerCodec = field(kw_only=True)


@contextlib.contextmanager
def open_language_model(name: str, where: str, tower: str = "text") -> Iterator[LanguageModel]:
    """Open a dense language model of transformers, given its folder, GGUF file or name on the Hub.

    Its ids are its tokenizer's; rows of its tables beyond those are left out. Raises CheckpointError where a tensor is
    missing or has no place, ResourceError where a package or the network is.
    """
    path = files.find(name, where)
    config = files.read_config(path, name, where)
    settings = families.model_settings(config, name, where)
    codec = _tokenizer_of(str(path), name, where)
    modality = ModalityConfig(vocab_size=codec.vocab_size)
    model = ModelConfig({tower: modality}, **codec.ends, **settings)
    with files.open_tensors(path, name, config, where) as tensors:
        rope, used = _rope_of_gguf(tensors, model, name, where)
        model = replace(model, rope_scaling=rope)
        saved = LanguageModel(name, model, lambda wanted: _read(places[wanted], tensors, model), codec=codec)
        places = {part.name: part.place for part in saved.model().parts.values()}
        saved.left_out = _check(saved, tensors, used, where)
        yield saved


def _tokenizer_of(path: str, name: str, where: str) -> PretrainedTokenizerCodec:
    """Return the tokenizer of a language model as a text codec; raises CheckpointError where it has none."""
    try:
        return PretrainedTokenizerCodec.from_options({"path": path})
    except ConfigError as error:
        reason = str(error).partition("holds no tokenizer")[2] or f" ({error})"
        raise CheckpointError(f"{where}: {name!r} holds no tokenizer that can be used{reason}") from None


def _check(saved: SavedWeights, tensors: files.Tensors, used: Sequence[str], where: str) -> dict[str, int]:
    """Raise a CheckpointError unless every weight is there and every tensor has a place; return what is left out."""
    model = saved.model()
    needed = {source for part in model.parts.values() for source in families.sources(part.place)}
    rules = dict(families.left_out(list(tensors.shapes), saved.config.tie_embeddings))
    missing = sorted(needed - set(tensors.shapes))
    if missing:
        raise CheckpointError(f"{where}: {saved.name!r} lacks {missing[0]!r} ({len(missing)} weights are missing)")
    unread = sorted(set(tensors.shapes) - needed - set(rules) - set(used))
    if unread:
        raise CheckpointError(
            f"{where}: {saved.name!r} has {unread[0]!r}, which plait has no place for ({len(unread)} such weights)"
        )
    ids, rows = len(saved.config.layout.ids(saved.config.layout.host)), 0
    for name, tensor in model.state_dict().items():
        place = model.parts[name].place
        names = families.sources(place)
        shapes = [tensors.shapes[source] for source in names]
        shape, wanted = (sum(s[0] for s in shapes), *shapes[0][1:]), tuple(tensor.shape)
        if place.component in TABLES and shape[1:] == wanted[1:]:
            rows = max(rows, shape[0] - ids)
            if shape[0] < ids:
                raise CheckpointError(
                    f"{where}: {saved.name!r} has {shape[0]} rows in {names[0]!r} and a tokenizer of {ids} ids, it "
                    "must have as many rows at least: take the tokenizer that belongs to the model"
                )
        elif shape != wanted:
            raise CheckpointError(
                f"{where}: {saved.name!r} has {names[0]!r} of shape {list(shapes[0])}, its config asks for another"
            )
    counts = {rule: list(rules.values()).count(rule) for rule in rules.values()}
    return counts | ({"rows of ids that its tokenizer does not have": rows} if rows else {})


def _read(place: Place, tensors: files.Tensors, config: ModelConfig) -> Tensor:
    """Return the weight of a place, in the precision of the language model's matrices."""
    parts = [tensors.read(source) for source in families.sources(place)]
    whole = qkv_rows(*parts, groups=config.num_kv_heads) if len(parts) == 3 else parts[0]
    whole = whole.to(tensors.dtype)
    if place.component not in TABLES:
        return whole
    layout = config.layout
    own = whole[: len(layout.ids(layout.host))]
    # an end of text that the tokenizer lacks is a new id
    return torch.cat([own, own.double().mean(0, keepdim=True).to(own.dtype).expand(len(layout.added), -1)])


def qkv_rows(*sides: Tensor, groups: int) -> Tensor:
    """Put projections of queries, keys and values [heads * d, ...] together by key head, its queries first.

    So has `plait.model.block.QKV` them.
    """
    return torch.cat([side.unflatten(0, (groups, -1)) for side in sides], dim=1).flatten(0, 1)


def _rope_of_gguf(
    tensors: files.Tensors, model: ModelConfig, name: str, where: str
) -> tuple[float | Llama3Rope, list[str]]:
    """Return the scaling of rotary frequencies, and the tensors that it was read from.

    A GGUF file has Llama 3.1's as one factor for each frequency.
    """
    if "rope_freqs.weight" not in tensors.shapes:
        return model.rope_scaling, []
    factors = tensors.read("rope_freqs.weight").double()
    scaling = Llama3Rope(factor=float(factors.max()))
    plain, scaled = (frequencies(model.head_dim, model.rope_theta, s) for s in (1.0, scaling))
    if factors.shape != plain.shape or not torch.allclose(plain / scaled, factors, rtol=1e-3):
        raise CheckpointError(
            f"{where}: {name!r} has rotary factors (rope_freqs.weight) other than Llama 3.1's; take the model in "
            "safetensors, whose config says what they are"
        )
    return scaling, ["rope_freqs.weight"]
