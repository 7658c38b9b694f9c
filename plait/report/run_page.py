"""One self-contained HTML page from a run's folder. Whatever the run did not get to is left out, not an error."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import yaml

from plait.codecs import Codec, load_codec
from plait.common.errors import DataError, PlaitError, ResourceError
from plait.common.files import from_json
from plait.common.units import count
from plait.data.shards import codec_folder
from plait.report import numbers as numbers_module
from plait.report import showcase
from plait.report import strips as strips_module
from plait.report.examples import examples
from plait.report.media import Media, clean
from plait.report.run_charts import braid, modalities_of, run_charts
from plait.report.scores import scores
from plait.report.trials import trials
from plait.train.metrics import read_jsonl, read_metrics
from plait.web.charts import NUM_COLOURS
from plait.web.html import write_page

TEMPLATE = Path(__file__).parent / "templates" / "report.html"
FIRST_SHOWN = 12
"""Samples of a task that are open from the start; the others are one click away."""
PARTS = ("config.yaml", "summary.json", "metrics.jsonl", "samples/samples.jsonl", "samples/codecs.jsonl",
         "samples/strips.jsonl", "samples/guidance.jsonl")  # fmt: skip
"""What a page can be made from, each alone or together with others."""
UNUSED_SETTINGS = {"next_token": ("steps", "sampler"), "diffusion": ("temperature", "top_k", "top_p")}
"""Sampling settings that an objective does not look at."""
NEUTRAL_SETTINGS = (("media_guidance", 1), ("sampler", "auto"))
"""Sampling settings that are not worth a word."""
FIRST_STRIPS = 6
"""Denoising strips, and prompts at several scales of guidance, that are open from the start."""
LAYOUTS = {"image": "images", "text": "captions", "clip": "clips", "live": "live", "html": "document", "file": "",
           "missing": ""}  # fmt: skip
"""How samples of one part are laid out, by its kind; "" goes with the rest of its task."""


def write_report(run_folder: str | Path, *, samples_per_task: int = 48) -> Path:
    """Write ``<run>/report.html`` and return its path.

    Reads config.yaml, summary.json, metrics.jsonl, samples/ and data/report.json, as far as they are there. Raises
    DataError where none is, or where one is damaged, and ResourceError where a package is missing.
    """
    run = Path(run_folder)
    if not any((run / part).is_file() for part in PARTS):
        raise DataError(f"report: {str(run)!r} is no run's folder, it must hold at least one of {', '.join(PARTS)}")
    try:
        import PIL.Image  # noqa: F401  (with soundfile, what plait.report.media reads samples with)
        import soundfile  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"report: the package {error.name!r} is not installed, run `pip install plait[media]`"
        ) from None
    shown = gather(run, samples_per_task)
    styles = ("report.css", "live.css") if shown["sources"] else ("report.css",)
    return write_page(run / "report.html", TEMPLATE, styles=styles, scripts=("players.js",), **shown)


def gather(run: Path, samples_per_task: int) -> dict[str, Any]:
    """Return everything that the template shows."""
    config_text, config = _config(run / "config.yaml")
    summary = from_json(_mapping(run / "summary.json"))
    rows = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    data = _data_folder(run, config)
    data_report = _mapping(data / "report.json")
    codec_of = functools.cache(functools.partial(_codec_of, data, config))
    scripts: dict[str, None] = {}
    media = Media(run / "samples", codec_of, scripts)
    denoised = _denoised(config)

    def records(name: str, key: str, *, varied: str = "") -> list[dict]:
        first_records = _records(run / "samples" / f"{name}.jsonl", samples_per_task, key)
        return [r | {"sampling": _settings(r.get("sampling"), denoised, varied)} for r in first_records]

    samples = [_sample(r, media) for r in records("samples", "task")]
    codecs = [_pair(r, media) for r in records("codecs", "modality")]
    strips = [_with_settings(g) for g in strips_module.strips(records("strips", ""), media)]
    guided = [_with_settings(g) for g in strips_module.guided(records("guidance", "", varied="guidance"), media)]
    counts = _counts(run / "samples" / "samples.jsonl")
    modalities = _modalities(config, rows, samples, [*codecs, *strips, *guided])
    units = _units(config, [name for name in modalities if name in denoised])
    strings = {k: v for k, v in summary.items() if isinstance(v, str)}
    numbers = {k: float(v) for k, v in summary.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    aims = {k: v for k, v in _section(_section(config, "evaluate"), "aims").items() if isinstance(v, int | float)}
    return {
        "name": clean(config.get("name") or summary.get("name") or run.resolve().name),
        "modalities": modalities,
        "colours": {name: i % NUM_COLOURS for i, name in enumerate(modalities)},
        "sentence": _sentence(summary, rows),
        "braid": braid(max(len(modalities), 2)),
        "denoised": [name for name in modalities if name in denoised],
        "units": units,
        "shown": showcase.shown(samples),
        "scores": scores(numbers, modalities, aims),
        "trials": trials(run, numbers),
        "examples": examples(run, codec_of, scripts),
        "took": numbers_module.run_facts(summary),
        "curves": run_charts(rows, modalities, units),
        "tasks": _tasks(samples, counts),
        "strips": strips,
        "guided": guided,
        "codecs": _codecs(codecs, numbers_module.codec_figures(summary, data_report), modalities),
        "losses": numbers_module.loss_table(summary, denoised),
        "facts": _facts(config, strings),
        "config_text": config_text,
        "all_figures": [(k, numbers_module.plain(v)) for k, v in sorted(summary.items()) if k not in strings],
        "data_figures": [
            (k, v if isinstance(v, str) else numbers_module.plain(v))
            for k, v in numbers_module.flatten(data_report).items()
        ],
        "credit": clean(data_report.get("credit", "")),
        "first_shown": FIRST_SHOWN,
        "first_strips": FIRST_STRIPS,
        "duration": numbers_module.duration,
        "sources": tuple(scripts),
        "empty": not (rows or samples or strips or guided or codecs or summary),
    }


def _config(path: Path) -> tuple[str, dict]:
    """Return the config as text and as plain values; a page of an old run must not fail on a renamed setting."""
    if not path.exists():
        return "", {}
    try:
        text = path.read_text("utf-8")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"report: {str(path)!r} is not a YAML file ({str(error).splitlines()[0]})") from None
    return text, values if isinstance(values, dict) else {}


def _mapping(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise DataError(f"report: {str(path)!r} is not a JSON file, so it is corrupt") from None
    return values if isinstance(values, dict) else {}


def _data_folder(run: Path, config: dict) -> Path:
    elsewhere = _section(config, "data").get("path")
    return Path(elsewhere) if elsewhere and not (run / "data").is_dir() else run / "data"


def _codec_of(data: Path, config: dict, modality: str) -> Codec | None:
    """Return a modality's codec, which shows what the page cannot; None where the data are gone or cannot be read."""
    if modality not in _section(_section(config, "model"), "modalities"):
        return None
    try:
        return load_codec(codec_folder(data, modality))
    except PlaitError:
        return None


def _records(path: Path, most: int, key: str) -> list[dict]:
    """Return the records of a JSONL file, at most ``most`` for each value of ``key``."""
    taken: dict[str, int] = {}
    records = []
    for record in read_jsonl(path) if path.exists() else []:
        group = str(record.get(key, ""))
        taken[group] = taken.get(group, 0) + 1
        if taken[group] <= most:
            records.append(record)
    return records


def _counts(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in read_jsonl(path) if path.exists() else []:
        task = clean(record.get("task", ""))
        counts[task] = counts.get(task, 0) + 1
    return counts


def _section(values: dict, name: str) -> dict:
    """Return a section of the config, empty where there is none."""
    return values[name] if isinstance(values.get(name), dict) else {}


def _denoised(config: dict) -> list[str]:
    """Return the modalities whose objective is diffusion."""
    modalities = _section(_section(config, "model"), "modalities").items()
    return [clean(name) for name, m in modalities if isinstance(m, dict) and m.get("objective") == "diffusion"]


def _units(config: dict, denoised: list[str]) -> str:
    """Return in words what losses are measured in."""
    if not denoised:
        return "in nats per token where it is discrete"
    diffusion = _section(config, "diffusion")
    predicted: dict[str, list[str]] = {}
    for name in denoised:
        process = _section(_section(diffusion, "by_modality"), name).get("process", diffusion.get("process"))
        predicted.setdefault("velocity" if process == "flow" else "noise", []).append(name)
    errors = [
        f"for {' and '.join(names)} the mean squared error of the predicted {what}, averaged per item"
        for what, names in predicted.items()
    ]
    return "; ".join(["in nats per token where it is discrete", *errors])


def _modalities(config: dict, rows: list[dict], samples: list[dict], others: list[dict]) -> list[str]:
    """Return all modalities in the config's order, then those that only the curves or the samples know."""
    names = [*_section(_section(config, "model"), "modalities"), *modalities_of(rows)]
    for sample in samples:
        names += [view["modality"] for part in ("prompt", "output", "truth") for view in sample[part]]
    names += [other["modality"] for other in others]
    return [clean(name) for name in dict.fromkeys(names) if name]


def _sample(record: dict, media: Media) -> dict:
    prompt = media.views(record.get("prompt"))
    output, truth = (media.views(record.get(part), record.get("prompt")) for part in ("output", "truth"))
    alone = len(output) == 1
    if alone and output[0]["kind"] == "text" and len(truth) == 1 and truth[0]["kind"] == "text":
        output[0]["words"] = _compare(output[0]["text"], truth[0]["text"])
    marks = record.get("correct")
    marks = {"caption": marks} if isinstance(marks, bool) else marks if isinstance(marks, dict) else {}
    layout = LAYOUTS[output[0]["kind"]] if alone else "document"
    return {
        "id": clean(record.get("id", "")),
        "task": clean(record.get("task", "")),
        "prompt": prompt,
        "output": output,
        "truth": truth,
        "layout": layout,
        "marks": [(clean(k).replace("_", " "), v) for k, v in marks.items() if isinstance(v, bool)],
        "settings": record["sampling"],
        "seed": record.get("seed"),
    }


def _compare(text: str, truth: str) -> list[tuple[str, bool]]:
    """Return the words of ``text``, each with whether the truth has it too."""
    known = {_bare(word) for word in truth.split()}
    return [(word, _bare(word) in known) for word in text.split()]


def _bare(word: str) -> str:
    return re.sub(r"\W", "", word).casefold() or word


def _settings(sampling: Any, denoised: list[str], varied: str) -> str:
    """Return in words how a sample was drawn, for each modality with what its objective looks at.

    The setting ``varied`` is left out, and so is what is no guidance or no choice.
    """
    said = []
    for name, value in sampling.items() if isinstance(sampling, dict) else ():
        values, start = (value, f"{name} ") if isinstance(value, dict) else ({name: value}, "")
        unused = UNUSED_SETTINGS["diffusion" if name in denoised else "next_token"]
        shown = {k: v for k, v in values.items() if k not in (*unused, varied) and (k, v) not in NEUTRAL_SETTINGS}
        words = [
            f"{k.replace('_', '-')} {v if isinstance(v, str) else numbers_module.plain(v)}" for k, v in shown.items()
        ]
        said += [start + ", ".join(words)] if words else []
    return clean("; ".join(said))


def _with_settings(group: dict) -> dict:
    """Add to a group of rows what all of them were drawn with; ``settings`` is empty where they differ."""
    said = {row["sampling"].removeprefix(f"{group['modality']} ") for row in group["rows"]}
    return group | {"settings": said.pop() if len(said) == 1 else "", "same_settings": not said}


def _tasks(samples: list[dict], counts: dict[str, int]) -> list[dict]:
    """Group samples by task. A task of mixed layouts is shown as documents."""
    groups: dict[str, list[dict]] = {}
    for sample in samples:
        groups.setdefault(sample["task"], []).append(sample)
    tasks = []
    for i, (name, task_samples) in enumerate(groups.items()):
        layouts = {s["layout"] for s in task_samples if s["layout"]} or {"clips"}
        settings = {s["settings"] for s in task_samples}
        same_settings = len(settings) == 1
        inputs, arrow, outputs = name.rpartition(">")
        tasks.append(
            {
                "anchor": f"task-{i + 1}",
                "name": name,
                "given": re.split("[>+,]", inputs) if arrow else [],
                "made": outputs.replace("+", ",").split(",") if arrow else [],
                "layout": layouts.pop() if len(layouts) == 1 else "document",
                "samples": task_samples,
                "count": counts.get(name, len(task_samples)),
                "settings": settings.pop() if same_settings else "",
                "same_settings": same_settings,
            }
        )
    order = ("images", "live", "captions", "clips", "document")
    return sorted(tasks, key=lambda task: order.index(task["layout"]))


def _pair(record: dict, media: Media) -> dict:
    original, made = (media.views(record.get(part)) for part in ("original", "reconstruction"))
    kinds = {view["kind"] for view in (*original, *made)}
    layout = "images" if "image" in kinds else "live" if "live" in kinds else "clips"
    return {"modality": clean(record.get("modality", "")), "original": original, "made": made, "layout": layout}


def _codecs(pairs: list[dict], known: dict[str, list], modalities: list[str]) -> list[dict]:
    names = [*modalities, *(name for name in known if name not in modalities)]
    rows = [
        {"modality": name, "figures": known.get(name, []), "pairs": [p for p in pairs if p["modality"] == name]}
        for name in names
    ]
    return [codec for codec in rows if codec["figures"] or codec["pairs"]]


def _sentence(summary: dict, rows: list[dict]) -> list[str]:
    """Return short facts for the line under the title."""
    facts = []
    last = rows[-1] if rows else {}
    if summary.get("parameters"):
        facts.append(f"{count(summary['parameters'])} parameters")
    if isinstance(last.get("step"), int):
        facts.append(f"{last['step']:,} steps")
    if isinstance(last.get("tokens"), int):
        facts.append(f"{count(last['tokens'])} tokens")
    if isinstance(last.get("seconds"), int | float):
        facts.append(f"trained for {numbers_module.duration(last['seconds'])}")
    return facts


def _facts(config: dict, strings: dict[str, str]) -> list[tuple[str, str]]:
    facts = {"seed": str(config["seed"])} if "seed" in config else {}
    first = ("commit", "hardware", "versions")
    facts |= {k: strings[k] for k in first if k in strings}
    facts |= {k: v for k, v in sorted(strings.items()) if k not in (*first, "name")}
    return [(clean(k).replace("_", " ").replace("/", ", "), clean(v)) for k, v in facts.items()]
