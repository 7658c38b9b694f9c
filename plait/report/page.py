"""One self-contained HTML page from a run's folder. Whatever the run did not get to is left out, not an error."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import yaml

from plait.errors import DataError, ResourceError
from plait.files import write_text
from plait.report import charts, figures
from plait.report.media import Media, clean
from plait.train.metrics import read_jsonl, read_metrics

TEMPLATES = Path(__file__).parent / "templates"
NUM_COLOURS = 8
FIRST_SHOWN = 12
"""Samples of a task that are open from the start; the others are one click away."""
LAYOUTS = {"picture": "pictures", "text": "captions", "clip": "clips", "file": "", "missing": ""}
"""How samples of one part are laid out, by its kind; "" goes with the rest of its task."""


def write_report(run_folder: str | Path, *, samples_per_task: int = 48) -> Path:
    """Write ``<run>/report.html`` and return its path.

    Reads config.yaml, summary.json, metrics.jsonl, samples/ and data/report.json, as far as they are there. Raises
    DataError where none is, or where one is damaged, and ResourceError where a package is missing.
    """
    run = Path(run_folder)
    parts = ("config.yaml", "summary.json", "metrics.jsonl", "samples/samples.jsonl", "samples/codecs.jsonl")
    if not any((run / part).is_file() for part in parts):
        raise DataError(f"report: {str(run)!r} is no run's folder, it must hold at least one of {', '.join(parts)}")
    try:
        import jinja2
        import PIL.Image  # noqa: F401  (with soundfile, what plait.report.media reads samples with)
        import soundfile  # noqa: F401
    except ImportError as error:
        raise ResourceError(
            f"report: the package {error.name!r} is not installed, run `pip install plait[media]`"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script = (TEMPLATES / "script.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html").render(
        **gather(run, samples_per_task),
        style=jinja2.utils.markupsafe.Markup((TEMPLATES / "style.css").read_text("utf-8")),
        script=jinja2.utils.markupsafe.Markup(script),
        script_hash=f"sha256-{digest}",
    )
    path = run / "report.html"
    write_text(path, page.encode("utf-8", "replace").decode("utf-8"))  # JSON may hold lone surrogates
    return path


def gather(run: Path, samples_per_task: int) -> dict[str, Any]:
    """Return everything that the template shows."""
    config_text, config = _config(run / "config.yaml")
    summary = _mapping(run / "summary.json")
    rows = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    data_report = _mapping(_data_folder(run, config) / "report.json")
    media = Media(run / "samples")
    samples = [_sample(r, media) for r in _records(run / "samples" / "samples.jsonl", samples_per_task, "task")]
    codecs = [_pair(r, media) for r in _records(run / "samples" / "codecs.jsonl", samples_per_task, "modality")]
    counts = _counts(run / "samples" / "samples.jsonl")
    modalities = _modalities(config, rows, samples, codecs)
    curves = charts.chart_groups(rows, modalities)
    strings = {k: v for k, v in summary.items() if isinstance(v, str)}
    return {
        "name": clean(config.get("name") or summary.get("name") or run.resolve().name),
        "modalities": modalities,
        "colours": {name: i % NUM_COLOURS for i, name in enumerate(modalities)},
        "sentence": _sentence(summary, rows),
        "braid": charts.braid(max(len(modalities), 2)),
        "headline": figures.headline(summary, modalities),
        "curves": curves,
        "tasks": _tasks(samples, counts),
        "codecs": _codecs(codecs, figures.codec_figures(summary, data_report), modalities),
        "losses": figures.loss_table(summary),
        "facts": _facts(config, strings),
        "config_text": config_text,
        "all_figures": [(k, figures.plain(v)) for k, v in sorted(summary.items()) if k not in strings],
        "data_figures": [(k, v if isinstance(v, str) else figures.plain(v))
                         for k, v in figures.flatten(data_report).items()],
        "scenes": (config.get("prepare") or {}).get("source", "scenes") == "scenes",
        "first_shown": FIRST_SHOWN,
        "duration": figures.duration,
        "empty": not (rows or samples or codecs or summary),
    }  # fmt: skip


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
        raise DataError(f"report: {str(path)!r} is not a JSON file, so it is damaged") from None
    return values if isinstance(values, dict) else {}


def _data_folder(run: Path, config: dict) -> Path:
    elsewhere = (config.get("data") or {}).get("path") if isinstance(config.get("data"), dict) else None
    return Path(elsewhere) if elsewhere and not (run / "data").is_dir() else run / "data"


def _records(path: Path, most: int, key: str) -> list[dict]:
    """Return the records of a JSONL file, at most ``most`` for each value of ``key``."""
    taken: dict[str, int] = {}
    kept = []
    for record in read_jsonl(path) if path.exists() else []:
        group = str(record.get(key, ""))
        taken[group] = taken.get(group, 0) + 1
        if taken[group] <= most:
            kept.append(record)
    return kept


def _counts(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in read_jsonl(path) if path.exists() else []:
        task = clean(record.get("task", ""))
        counts[task] = counts.get(task, 0) + 1
    return counts


def _modalities(config: dict, rows: list[dict], samples: list[dict], codecs: list[dict]) -> list[str]:
    """Return all modalities in the config's order, then those that only the curves or the samples know."""
    model = config.get("model")
    named = model.get("modalities") if isinstance(model, dict) else None
    names = [*(named or {}), *charts.modalities_of(rows)]
    for sample in samples:
        names += [view["modality"] for part in ("prompt", "output", "truth") for view in sample[part]]
    names += [pair["modality"] for pair in codecs]
    return [clean(name) for name in dict.fromkeys(names) if name]


def _sample(record: dict, media: Media) -> dict:
    prompt, output, truth = (media.views(record.get(part)) for part in ("prompt", "output", "truth"))
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
        "settings": _settings(record.get("sampling")),
        "seed": record.get("seed"),
    }


def _compare(text: str, truth: str) -> list[tuple[str, bool]]:
    """Return the words of ``text``, each with whether the truth has it too."""
    known = {_bare(word) for word in truth.split()}
    return [(word, _bare(word) in known) for word in text.split()]


def _bare(word: str) -> str:
    return re.sub(r"\W", "", word).casefold() or word


def _settings(sampling: Any) -> str:
    flat = figures.flatten(sampling) if isinstance(sampling, dict) else {}
    return ", ".join(f"{k.replace('/', ' ').replace('_', '-')} {figures.plain(v)}" for k, v in flat.items())


def _tasks(samples: list[dict], counts: dict[str, int]) -> list[dict]:
    """Group samples by task. A task of mixed layouts is shown as documents."""
    groups: dict[str, list[dict]] = {}
    for sample in samples:
        groups.setdefault(sample["task"], []).append(sample)
    tasks = []
    for i, (name, found) in enumerate(groups.items()):
        layouts = {s["layout"] for s in found if s["layout"]} or {"clips"}
        settings = {s["settings"] for s in found}
        same_settings = len(settings) == 1
        given, arrow, made = name.partition(">")
        tasks.append({
            "anchor": f"task-{i + 1}",
            "name": name,
            "given": given.replace("+", ",").split(",") if arrow else [],
            "made": made.replace("+", ",").split(",") if arrow else [],
            "layout": layouts.pop() if len(layouts) == 1 else "document",
            "samples": found,
            "count": counts.get(name, len(found)),
            "settings": settings.pop() if same_settings else "",
            "same_settings": same_settings,
        })  # fmt: skip
    order = ("pictures", "captions", "clips", "document")
    return sorted(tasks, key=lambda task: order.index(task["layout"]))


def _pair(record: dict, media: Media) -> dict:
    original, made = (media.views(record.get(part)) for part in ("original", "reconstruction"))
    kinds = {view["kind"] for view in (*original, *made)}
    layout = "pictures" if "picture" in kinds else "clips"
    return {"modality": clean(record.get("modality", "")), "original": original, "made": made, "layout": layout}


def _codecs(pairs: list[dict], known: dict[str, list], modalities: list[str]) -> list[dict]:
    names = [*modalities, *(name for name in known if name not in modalities)]
    found = [
        {"modality": name, "figures": known.get(name, []), "pairs": [p for p in pairs if p["modality"] == name]}
        for name in names
    ]
    return [codec for codec in found if codec["figures"] or codec["pairs"]]


def _sentence(summary: dict, rows: list[dict]) -> list[str]:
    """Return short facts for the line under the title."""
    facts = []
    last = rows[-1] if rows else {}
    if summary.get("parameters"):
        facts.append(f"{figures.count(summary['parameters'])} parameters")
    if isinstance(last.get("step"), int):
        facts.append(f"{last['step']:,} steps")
    if isinstance(last.get("tokens"), int):
        facts.append(f"{figures.count(last['tokens'])} tokens")
    if isinstance(last.get("seconds"), int | float):
        facts.append(f"trained for {figures.duration(last['seconds'])}")
    return facts


def _facts(config: dict, strings: dict[str, str]) -> list[tuple[str, str]]:
    facts = {"seed": str(config["seed"])} if "seed" in config else {}
    first = ("commit", "hardware", "versions")
    facts |= {k: strings[k] for k in first if k in strings}
    facts |= {k: v for k, v in sorted(strings.items()) if k not in (*first, "name")}
    return [(clean(k).replace("_", " ").replace("/", ", "), clean(v)) for k, v in facts.items()]
