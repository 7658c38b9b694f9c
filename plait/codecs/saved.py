"""Writing and reading a codec's folder: codec.json and model.safetensors, atomically, with clear errors."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from plait.codecs.base import Codec
from plait.common.errors import CheckpointError, ConfigError, ResourceError, first_line
from plait.common.files import atomic_file, write_json
from plait.config.file import to_dict

AnyCodec = TypeVar("AnyCodec", bound=Codec)


def write_description(codec: Codec, folder: Path, **more: Any) -> None:
    """Write codec.json, which `plait.codecs.load_codec` starts from."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {"codec": codec.name, "options": to_dict(codec.options), "vocab_size": codec.vocab_size} | more
    write_json(folder / "codec.json", description)


def read_description(cls: type[AnyCodec], folder: Path) -> tuple[AnyCodec, dict[str, Any]]:
    """Read codec.json; returns the codec built from its options, without weights, and the whole description."""
    description = _description(cls, folder)
    return _build(cls, folder, description["options"]), description


def read_copy(cls: type[AnyCodec], folder: Path) -> tuple[AnyCodec, dict[str, Any]]:
    """Read a codec whose weights lie in ``folder`` as pretrained files; returns it and the whole description.

    Its ``path`` option stays what it was: the name of the files that were copied, or "".
    """
    description = _description(cls, folder)
    codec = _build(cls, folder, description["options"] | {"path": str(folder)})
    codec.options.path = description["options"].get("path", "")
    return codec, description


def description_of(folder: Path) -> dict[str, Any]:
    """Return codec.json as plain values; raises CheckpointError where it is missing or names no codec."""
    path = Path(folder) / "codec.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        _ = description["codec"]
    except FileNotFoundError:
        raise CheckpointError(f"codec: there is no {str(path)!r}, so {str(folder)!r} holds no codec") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise CheckpointError(f"codec: {str(path)!r} is not a codec description") from None
    return description


def _description(cls: type[Codec], folder: Path) -> dict[str, Any]:
    description, path = description_of(folder), str(Path(folder) / "codec.json")
    if description["codec"] != cls.name:
        raise CheckpointError(f"codec: {path!r} describes a codec {description['codec']!r}, not {cls.name!r}")
    if not isinstance(description.get("options"), dict):  # a codec of one's own may keep its settings otherwise
        raise CheckpointError(f"codec: {path!r} is not a codec description")
    return description


def _build(cls: type[AnyCodec], folder: Path, options: dict[str, Any]) -> AnyCodec:
    try:
        return cls.from_options(options)
    except ConfigError as error:
        path = str(Path(folder) / "codec.json")
        raise CheckpointError(f"codec: {path!r} cannot be used ({error})") from None


def write_weights(model: nn.Module, folder: Path) -> None:
    """Write the module's parameters and buffers to model.safetensors."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with atomic_file(Path(folder) / "model.safetensors") as temporary:
        save_file(tensors, temporary)


def read_weights(model: nn.Module, folder: Path) -> None:
    """Load model.safetensors; raises CheckpointError unless names and shapes are exactly the module's."""
    path = Path(folder) / "model.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"codec: there is no {str(path)!r}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"codec: {str(path)!r} is not a readable safetensors file ({error})") from None
    wanted = model.state_dict()
    wrong = sorted(set(tensors) ^ set(wanted)) or [n for n, t in tensors.items() if t.shape != wanted[n].shape]
    if wrong:
        raise CheckpointError(f"codec: {str(path)!r} is of another codec (weight {wrong[0]!r} does not fit)")
    model.load_state_dict(tensors)
    model.eval()


@contextlib.contextmanager
def installed(package: str) -> Iterator[None]:
    """Turn an ImportError within into a ResourceError that says what to install."""
    try:
        yield
    except ImportError as error:
        message = f"codec: package {package!r} is not installed ({error}), install it: pip install 'plait[media]'"
        raise ResourceError(message) from None


def place_of(path: str) -> tuple[str, dict[str, str]]:
    """Return where transformers finds a model, and what it is told besides: of a GGUF file, its folder and its name."""
    file = Path(path)
    return (str(file.parent), {"gguf_file": file.name}) if file.suffix == ".gguf" else (path, {})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing its own bars, and from listing weights that are left out on purpose."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


_TRAINING_ALONE = "masked_spec_embed"
"""A weight that speech encoders are only pretrained with, so that some files lack it."""


def load_pretrained(model_class: Any, path: str, *, is_part: bool = False) -> Any:
    """Load a transformers or diffusers model for inference, from safetensors and with every weight accounted for.

    ``is_part``: the files may hold a larger model, of which this one is a part.
    """
    # diffusers' other way of loading needs one more package, and warns where it is not there
    options = {"low_cpu_mem_usage": False} if model_class.__module__.startswith("diffusers.") else {}
    try:
        model, info = model_class.from_pretrained(path, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise ConfigError(f"codec_options.path: {path!r} holds no {model_class.__name__} ({reason})") from None
    kinds = ("missing_keys", "mismatched_keys") if is_part else ("missing_keys", "unexpected_keys", "mismatched_keys")
    wrong = [str(name) for kind in kinds for name in info.get(kind, ()) if not is_part or name != _TRAINING_ALONE]
    if wrong:
        raise ConfigError(f"codec_options.path: {path!r} holds no {model_class.__name__} (weight {wrong[0]!r} differs)")
    return model.eval().requires_grad_(False)
