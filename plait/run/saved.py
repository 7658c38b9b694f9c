"""What a saved model has besides its weights: codecs, the settings of generation, and a card with the run's figures.

With them, `plait.load` takes the folder on a machine that has none of the run's data.
"""

import shutil
from pathlib import Path
from typing import Any

from plait.codecs import Codec, load_codec
from plait.common.errors import CheckpointError
from plait.common.files import read_json, write_json, write_text
from plait.config.file import from_dict, to_dict
from plait.config.generation import DiffusionConfig, GenerateConfig
from plait.config.run import RunConfig
from plait.data.shards import INDEX_NAME, codec_folder
from plait.data.sources import codec_records, folders
from plait.report.scores import Score, scores

SETTINGS, CARD = "generation.json", "README.md"
SCHEMA_VERSION = 1


def add_codecs(config: RunConfig, folder: Path, name: str, *, measured: bool) -> None:
    """Write a run's codecs, settings of generation and card beside its saved weights.

    ``name`` is the folder's to be, ``measured`` says whether the run's figures are those of these weights. Raises
    CheckpointError where its prepared data, and with them a codec, are not there.
    """
    for data in folders(config):
        if not (Path(data) / INDEX_NAME).is_file():
            raise CheckpointError(
                f"export: the prepared data {data!r}, with the codecs, are not there; bring them back, or export "
                "--weights-only"
            )
    found, records = codec_records(config), {}
    for modality in config.model.modalities:
        if modality not in found:
            raise CheckpointError(f"export: the prepared data of {config.out!r} has no codec of {modality!r}")
        data, record = found[modality]
        shutil.copytree(codec_folder(data, modality), codec_folder(folder, modality))
        records[modality] = {"key": record["key"], "reads": record.get("reads", "")}
    write_json(folder / SETTINGS, {
        "schema_version": SCHEMA_VERSION, "modalities": records, "tasks": dict(config.data.tasks),
        "generate": to_dict(config.generate), "diffusion": to_dict(config.diffusion),
    })  # fmt: skip
    write_text(folder / CARD, card(config, name, measured=measured))


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what `add_codecs` wrote, empty for a folder without it (raises CheckpointError)."""
    path = folder / SETTINGS
    if not path.is_file():
        return {}
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


# -- the card -------------------------------------------------------------------------------------------------------

PROMPT = "a fox on a blue background"
_CARD = """---
library_name: plait
pipeline_tag: any-to-any
tags:
- mixture-of-transformers
{tags}---

# {name}

A Mixture-of-Transformers (arXiv 2411.04996) of {modalities}: each has parameters of its own, and one global
attention joins them. Trained with plait {version}{commit}.

```python
import plait

pipeline = plait.load("{folder}")
sample = pipeline.generate("{prompt}", "{output}")[0]
```

{figures}

{credits}
"""


def card(config: RunConfig, folder: str, *, measured: bool) -> str:
    """Return the model card: what the model is, how it is used, and the figures that its run measured, if any."""
    import plait

    names = list(config.model.modalities)
    made = [name for name, m in config.model.modalities.items() if m.objective != "input"]
    summary = Path(config.out) / "summary.json"
    numbers = read_json(summary, "run") if measured and summary.is_file() else {}
    rows = scores(numbers, names, config.evaluate.aims)
    reports = [Path(data) / "report.json" for data in folders(config)]
    credits = [read_json(path, "prepare").get("credit", "") for path in reports if path.is_file()]
    commit = f", commit {numbers['commit']}" if numbers.get("commit") else ""
    return _CARD.format(
        tags="".join(f"- {name}\n" for name in names), name=config.name, modalities=", ".join(names), commit=commit,
        version=plait.__version__, folder=folder, output=made[-1], figures=_table(rows), prompt=PROMPT,
        credits="\n".join(filter(None, dict.fromkeys(credits))),
    )  # fmt: skip


def _table(rows: list[Score]) -> str:
    if not rows:
        return "Nothing was measured of these weights (`plait evaluate`)."
    lines = ["| given | made | score | value | chance | the codec's own |", "|---|---|---|---|---|---|"]
    for row in rows:
        label = f"{row.label} ({row.note})" if row.note else row.label
        lines.append(f"| {' | '.join((row.given, row.made, label, row.value, row.chance, row.ceiling))} |")
    return "\n".join(lines)
