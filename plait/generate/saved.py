"""A model saved with its codecs: what its folder has besides the weights, so that `plait.load` needs no data of a run.

``codecs/{modality}``, and `generation.json`: the settings of generation, the tasks that the model was trained on, and
of each modality its key in manifests, its kind, what it reads, and the extent of an item where that is fixed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.codecs import Codec, load_codec
from plait.common import hub
from plait.common.errors import CheckpointError
from plait.common.files import read_json, write_json, write_text
from plait.config.file import from_dict, to_dict
from plait.config.generation import DiffusionConfig, GenerateConfig
from plait.config.model import ModelConfig
from plait.data.shards import codec_folder
from plait.generate.pipeline import Pipeline

SETTINGS, CARD = "generation.json", "README.md"
SCHEMA_VERSION = 1


def save_pipeline(pipeline: Pipeline, folder: Path, *, max_shard_size: int | str = "5GB") -> None:
    """Write a model with its codecs and settings into ``folder``, which `plait.load` takes."""
    pipeline.model.save_pretrained(folder, max_shard_size=max_shard_size)
    for name, codec in pipeline.codecs.items():
        codec.save_pretrained(codec_folder(folder, name))
    write_settings(folder, pipeline.codecs, pipeline.tasks, pipeline.config, pipeline.diffusion or DiffusionConfig())


def push_pipeline(
    pipeline: Pipeline, name: str, *, private: bool, revision: str, message: str, max_shard_size: int | str
) -> str:
    """Publish a model with its codecs, settings and a card on the Hub; return the commit's address."""

    def write(folder: Path) -> None:
        save_pipeline(pipeline, folder, max_shard_size=max_shard_size)
        write_text(folder / CARD, card(pipeline.model.config, name))

    return hub.pushed(name, write, private=private, revision=revision, message=message)


def write_settings(
    folder: Path, codecs: Mapping[str, Codec], tasks: Mapping[str, float], generate: GenerateConfig,
    diffusion: DiffusionConfig,
) -> None:  # fmt: skip
    """Write `generation.json`."""
    modalities = {
        name: {"key": codec.key, "kind": codec.kind, "reads": codec.reads, "grid": list(codec.default_grid)}
        for name, codec in codecs.items()
    }
    write_json(folder / SETTINGS, {
        "schema_version": SCHEMA_VERSION, "modalities": modalities,
        "tasks": dict(tasks), "generate": to_dict(generate), "diffusion": to_dict(diffusion),
    })  # fmt: skip


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what `write_settings` wrote, empty for a folder without it (raises CheckpointError)."""
    path = folder / SETTINGS
    return check_settings(path) if path.is_file() else {}


def check_settings(path: Path) -> dict[str, Any]:
    """Read a file that `write_settings` wrote (raises CheckpointError)."""
    values = read_json(path, "model")
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"model: {str(path)!r} has schema version {version!r}, it must be {SCHEMA_VERSION}")
    return dict(values)


def generation_of(settings: dict[str, Any]) -> tuple[GenerateConfig, DiffusionConfig]:
    """Return the settings of generation of a saved model (`read_settings`), the defaults where it has none."""
    generate = from_dict(GenerateConfig, settings.get("generate", {}), "generate")
    return generate, from_dict(DiffusionConfig, settings.get("diffusion", {}), "diffusion")


def read_codec(folder: Path, name: str, settings: dict[str, Any]) -> Codec:
    """Load a codec of a saved model with its settings. Raises CheckpointError where it has none of this modality."""
    if not codec_folder(folder, name).is_dir():
        raise CheckpointError(
            f"model: {str(folder)!r} holds no codec of {name!r} ({codec_folder(folder, name)}), without which it "
            "can neither read nor make it"
        )
    record = settings.get("modalities", {}).get(name, {})
    return load_codec(codec_folder(folder, name), record.get("key", ""), record.get("reads", ""))


_CARD = """---
library_name: plait
pipeline_tag: any-to-any
tags:
- mixture-of-transformers
{tags}---

# {name}

A Mixture-of-Transformers (arXiv 2411.04996) of {modalities}: each has its own parameters, and one global
attention joins them. Made with plait {version}{commit}.

```python
import plait

pipeline = plait.load("{folder}")
sample = pipeline.generate("{prompt}", "{output}")[0]
```

{figures}

{credits}
"""


def card(
    config: ModelConfig, folder: str, *, name: str = "", example: tuple[str, str] | None = None, figures: str = "",
    commit: str = "", credits: str = "",
) -> str:  # fmt: skip
    """Return a model card: what the model is and how it is used, with figures where there are some.

    ``example`` is a text, and the modality that follows it.
    """
    import plait

    names = list(config.modalities)
    prompt, output = example or ("...", [n for n, m in config.modalities.items() if m.objective != "input"][-1])
    return _CARD.format(
        tags="".join(f"- {n}\n" for n in names), name=name or folder, modalities=", ".join(names),
        commit=f", commit {commit}" if commit else "", version=plait.__version__, folder=folder, output=output,
        figures=figures or "Nothing was measured of these weights (`plait evaluate`).", prompt=prompt, credits=credits,
    )  # fmt: skip
