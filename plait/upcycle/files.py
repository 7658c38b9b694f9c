"""The files of a language model: a folder, a GGUF file or a name on the Hub; tensors are read one by one."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plait.codecs.saved import place_of
from plait.common import hub
from plait.common.errors import CheckpointError, ResourceError, first_line
from plait.common.tensor_files import TensorStore
from plait.model.pretrained import is_own

WEIGHTS = "model.safetensors"
NEEDED = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched of a model on the Hub."""

_GGUF_BLOCK = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
               "attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm",
               "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
               "ffn_down": "mlp.down_proj", "attn_q_norm": "self_attn.q_norm",
               "attn_k_norm": "self_attn.k_norm"}  # fmt: skip
_GGUF_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass
class Tensors:
    """The tensors of a language model, by transformers' names."""

    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    """That of its matrices, once they are read."""
    read: Callable[[str], Tensor]


def find(name: str, where: str) -> Path:
    """Return the folder, or the GGUF file, of a model; one on the Hub is fetched, weights in safetensors alone."""
    path = Path(name).expanduser()
    if path.is_dir():
        gguf = sorted(path.glob("*.gguf"))
        if (path / "config.json").is_file() or not gguf:
            return path
        if len(gguf) > 1:
            files = ", ".join(p.name for p in gguf)
            raise CheckpointError(f"{where}: {name!r} holds several GGUF files ({files}), name the one that is meant")
        return gguf[0]
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"{where}: {name!r} is a file, it must be a folder, a .gguf file or a name on the Hub"
            )
        return path
    return hub.fetched(name, where, NEEDED)


def read_config(path: Path, name: str, where: str) -> Any:
    """Return a model's config as transformers reads it (raises CheckpointError)."""
    try:
        from transformers import AutoConfig
    except ImportError:
        message = f"{where}: package 'transformers' is not installed, install it: pip install 'plait[media]'"
        raise ResourceError(message) from None
    place, options = place_of(str(path))
    if not options and not (path / "config.json").is_file():
        raise CheckpointError(f"{where}: {name!r} holds no config.json, so it is no model of transformers")
    if options:
        _gguf(where)
    elif is_own(path):
        raise CheckpointError(
            f"{where}: {name!r} is a model of plait's own, not a language model of transformers; name its folder in "
            "init_from, without hf:"
        )
    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    except Exception as error:  # whatever a config of unknown origin lets it raise
        reason = first_line(error)
        raise CheckpointError(f"{where}: the config of {name!r} cannot be read ({reason})") from None


@contextlib.contextmanager
def open_tensors(path: Path, name: str, config: Any, where: str) -> Iterator[Tensors]:
    """Open the tensors of a model."""
    if path.suffix == ".gguf":
        yield _open_gguf(path, name, config, where)
        return
    if not any((path / f"{WEIGHTS}{suffix}").is_file() for suffix in ("", ".index.json")):
        pickles = sorted(p.name for p in path.glob("*.bin"))
        why = f", only {pickles[0]}, a pickle, which runs whatever code it holds" if pickles else ""
        raise CheckpointError(f"{where}: {name!r} holds no {WEIGHTS}{why}; save it with safetensors")
    with TensorStore(path / WEIGHTS, where) as store:
        prefix = "" if any(n.startswith("model.") for n in store.tensors) else "model."
        names = {n if n.startswith("lm_head.") else prefix + n: n for n in store.tensors}
        shapes = {theirs: tuple(store.tensors[own].shape) for theirs, own in names.items()}
        dtypes = {t.dtype for t in store.tensors.values() if len(t.shape) == 2}
        wide = max(dtypes, key=lambda d: d.itemsize, default=torch.float32)
        if not wide.is_floating_point or wide.itemsize < 2:
            raise CheckpointError(f"{where}: {name!r} holds weights of type {wide}, it must be 16 bits or wider")
        yield Tensors(shapes, wide, lambda wanted: store.read(names[wanted]))


def _gguf(where: str) -> Any:
    try:
        import gguf
    except ImportError:
        raise ResourceError(f"{where}: package 'gguf' is not installed, install it: pip install gguf") from None
    return gguf


def _open_gguf(path: Path, name: str, config: Any, where: str) -> Tensors:
    gguf = _gguf(where)
    try:
        reader = gguf.GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
    except Exception as error:  # the reader checks little, and fails where it stands
        raise CheckpointError(f"{where}: {name!r} is not a readable GGUF file ({error})") from None
    by_name = {gguf_name(t.name): t for t in reader.tensors}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def read(wanted: str) -> Tensor:
        tensor = by_name[wanted]
        try:
            values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        except (NotImplementedError, ValueError) as error:
            kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
            raise CheckpointError(
                f"{where}: {tensor.name} of {name!r} is quantised as {kind}, which cannot be read ({error}); take a "
                "GGUF file in F32, F16, BF16, Q8_0, Q4_0, Q4_1 or K-quants"
            ) from None
        side = wanted.split(".")[-2]
        if architecture == "llama" and side in heads:  # its rotation goes over pairs, not halves
            values = values.unflatten(0, (heads[side], -1, 2)).transpose(1, 2).reshape(values.shape)
        return values

    return Tensors({n: tuple(int(s) for s in reversed(t.shape)) for n, t in by_name.items()}, torch.float32, read)


def gguf_name(name: str) -> str:
    """Return transformers' name of a GGUF tensor; one that is not known keeps its own."""
    first, *rest = name.split(".")
    if first == "blk" and len(rest) == 3 and rest[1] in _GGUF_BLOCK:
        return f"model.layers.{rest[0]}.{_GGUF_BLOCK[rest[1]]}.{rest[2]}"
    return f"{_GGUF_OUTER[first]}.{rest[0]}" if first in _GGUF_OUTER and len(rest) == 1 else name
