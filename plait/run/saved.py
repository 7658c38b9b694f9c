"""What `plait export` writes besides the weights: the run's codecs and settings, and a card with its figures."""

import shutil
from pathlib import Path

from plait.common.errors import CheckpointError
from plait.common.files import read_json, write_text
from plait.config.run import RunConfig
from plait.data.shards import INDEX_NAME, codec_folder
from plait.data.sources import codec_records, folders
from plait.generate.saved import CARD, card, write_settings
from plait.report.scores import ROUTE, Score, scores
from plait.run.load import load_codecs
from plait.train.metrics import read_jsonl


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
    found = codec_records(config)
    for modality in config.model.modalities:
        if modality not in found:
            raise CheckpointError(f"export: the prepared data of {config.out!r} has no codec of {modality!r}")
        shutil.copytree(codec_folder(found[modality][0], modality), codec_folder(folder, modality))
    codecs = load_codecs(config, list(config.model.modalities))
    write_settings(folder, codecs, config.data.tasks, config.generate, config.diffusion)
    write_text(folder / CARD, _card(config, name, measured=measured))


def _card(config: RunConfig, folder: str, *, measured: bool) -> str:
    """Return the card of a run: its figures, if they are of these weights, and the credits of its data."""
    summary = Path(config.out) / "summary.json"
    numbers = read_json(summary, "run") if measured and summary.is_file() else {}
    rows = scores(numbers, list(config.model.modalities), config.evaluate.aims)
    reports = [Path(data) / "report.json" for data in folders(config)]
    credits = [read_json(path, "prepare").get("credit", "") for path in reports if path.is_file()]
    return card(
        config.model, folder, name=config.name, example=_example(Path(config.out)), figures=_table(rows),
        commit=numbers.get("commit", ""), credits="\n".join(filter(None, dict.fromkeys(credits))),
    )  # fmt: skip


def _example(run: Path) -> tuple[str, str] | None:
    """Return a text that a run's samples show, such as one of its world, and what was made of it."""
    path = run / "samples" / "samples.jsonl"
    for record in read_jsonl(path) if path.is_file() else []:
        given, output = record["prompt"], record["task"].rpartition(">")[2]
        if len(given) == 1 and given[0].get("text") and output != given[0]["modality"]:
            return str(given[0]["text"]), str(output)
    return None


def _table(rows: list[Score]) -> str:
    if not rows:
        return ""
    lines = [f"| {ROUTE} | score | value | chance | the codec's own |", "|---|---|---|---|---|"]
    for row in rows:
        label = f"{row.label} ({row.aside})" if row.aside else row.label
        lines.append(f"| {' | '.join((row.route, label, row.value, row.chance, row.ceiling))} |")
    return "\n".join(lines)
