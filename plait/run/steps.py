"""The steps of a run, each resumable, and the whole path one after the other (plait quickstart)."""

import contextlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plait.common.errors import CheckpointError, Held, require
from plait.common.files import atomic_folder, from_json, read_json, write_json, write_text
from plait.common.launch import is_first
from plait.common.locks import LOCK, one_writer, writer_of
from plait.common.progress import Progress, QuietProgress
from plait.common.tensor_files import TensorStore
from plait.config.run import RunConfig
from plait.config.settings import FIXED, MEASURED, STREAM, identity
from plait.data.sources import data_fingerprint
from plait.evaluate.judge import judge_class
from plait.evaluate.measures import missing_packages
from plait.evaluate.suite import FILE, FOLDER, VERSION, Suite
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import autocast, usable
from plait.prepare.raw_sources import folder_of
from plait.prepare.row_index import sources_of
from plait.prepare.stages import check_prepare, prepare
from plait.report import write_report
from plait.report.run_charts import MADE
from plait.run.load import Pipeline, Sample, load_codecs, load_run
from plait.run.samples import SampleSet
from plait.train import checkpoint
from plait.train.acceptance import check_goes_on, keep_config, newest_state
from plait.train.host_memory import MEASURE, MemoryWatch
from plait.train.metrics import hardware, read_jsonl, read_metrics, versions, write_summary
from plait.train.parallel import from_first, process_group
from plait.train.trainer import Trainer, pick_device

COUNTS = ("captions", "images", "clips", "items", "pairs")
"""Settings of `evaluate` that say how many items are made."""
SAMPLES_PER_TASK = 12
FREE_SAMPLES = 8


@contextlib.contextmanager
def timed(config: RunConfig, stage: str) -> Iterator[Callable[[], None]]:
    """Add a stage's time, summed over all attempts, to timings.json, and its peak memory to memory.json.

    Yields what the stage calls once it has accepted its settings: one that was refused writes nothing.
    """
    out, started, memory, accepted = Path(config.out), time.monotonic(), MemoryWatch(), []
    for name in ("timings.json", "memory.json"):
        _figures_of(out / name)  # a damaged one is said before the work, not after it
    try:
        with memory:
            yield lambda: accepted.append(True)
    finally:
        if accepted:
            times, peaks = _figures_of(out / "timings.json"), _figures_of(out / "memory.json")
            times[stage] = times.get(stage, 0.0) + time.monotonic() - started
            peaks[stage] = max(peaks.get(stage, 0.0), memory.peak_gb)
            write_json(out / "timings.json", times)
            write_json(out / "memory.json", peaks)


def _figures_of(path: Path) -> dict[str, float]:
    """Return the figures by stage that `timed` has written."""
    figures = read_json(path, path.stem) if path.exists() else {}
    if not isinstance(figures, dict) or not all(isinstance(v, int | float) for v in figures.values()):
        raise CheckpointError(f"{path.stem}: {str(path)!r} does not hold figures by stage, remove it")
    return figures


def _kept_figures(path: Path) -> dict[str, float]:
    """Return the figures that evaluation wrote beside their key."""
    return from_json(read_json(path, path.stem)["figures"])


def prepare_step(config: RunConfig, progress: Progress, *, restart: bool = False) -> dict[str, Any]:
    """Raw media to codecs and shards (plait prepare)."""
    with one_writer(config.out, "run"):
        check_goes_on(config, newest_state(config))
        with timed(config, "prepare") as accepted:

            def accept() -> None:
                keep_config(config)
                accepted()

            return prepare(config, progress=progress, restart=restart, on_accepted=accept)


def train_step(config: RunConfig, progress: Progress) -> None:
    """Shards to a trained model (plait train); where a launcher started several ranks, each of them calls it."""
    with (
        process_group(config.train.device) as is_first,
        _one_writer_of_all(config, is_first),
        timed(config, "train") if is_first else contextlib.nullcontext(lambda: None) as accepted,
    ):
        Trainer(
            config, progress, on_sample=lambda model, step: sample_while_training(config, model, step),
            on_evaluate=lambda model: evaluate_while_training(config, model), on_accepted=accepted,
        ).run()  # fmt: skip


@contextlib.contextmanager
def _one_writer_of_all(config: RunConfig, is_first: bool) -> Iterator[None]:
    """Let rank 0 hold the run's folder; where it cannot, every rank raises the same `Held`."""
    with contextlib.ExitStack() as stack:
        said = ""
        try:
            if is_first:
                stack.enter_context(one_writer(config.out, "run"))
        except Held as error:
            said = str(error)
        said = from_first(said)
        if said:
            raise Held(said)
        yield


def sample_while_training(config: RunConfig, model: MixtureOfTransformers, step: int) -> None:
    """Write a few samples of every task into ``<run>/progress/step-...`` (train.sample_every).

    Ranks that share a model all draw the same samples, and rank 0 keeps them.
    """
    pipeline = Pipeline(model, load_codecs(config), config.generate, config.diffusion)
    progress_folder = atomic_folder(Path(config.out) / "progress" / f"step-{step:08d}")
    with progress_folder if is_first() else tempfile.TemporaryDirectory() as folder:
        SampleSet(config, pipeline, Path(folder), 2).write(free=2)


def evaluate_while_training(config: RunConfig, model: MixtureOfTransformers) -> dict[str, float]:
    """Return figures of what a model makes, as `plait evaluate` has them of a few items (train.evaluate_every).

    Ranks that share a model all make the same, and rank 0 keeps the figures.
    """
    most, own = config.train.evaluate_items, config.evaluate
    few = replace(own, choices=0, **{name: min(getattr(own, name), most) for name in COUNTS})
    pipeline = Pipeline(model, load_codecs(config), config.generate, config.diffusion)
    folder = Path(config.out) / FOLDER
    figures = Suite(replace(config, evaluate=few), pipeline, QuietProgress(), folder=folder, is_brief=True).made()
    return {f"{MADE}{name}": value for name, value in figures.items() if "/" not in name}


def evaluate_step(config: RunConfig, progress: Progress) -> dict[str, float]:
    """Measure the newest checkpoint, once; the figures are kept in evaluation.json (plait evaluate)."""
    path = Path(config.out) / FILE
    with one_writer(config.out, "run"):
        key = _key(config) | {"missing": _missing_judges(config), "version": VERSION}
        if path.exists() and read_json(path, "evaluation").get("key") == key:
            return _kept_figures(path)
        with timed(config, "evaluate") as accepted:
            # losses are those of training, whatever precision is generated in
            pipeline = load_run(config, config.train.device, "float32")
            accepted()
            device = pipeline.model.device
            precision = usable(config.train.precision, device)
            suite = Suite(config, pipeline, progress, lambda: autocast(precision, device),
                          Path(config.out) / FOLDER)  # fmt: skip
            figures = suite.run()
            write_json(path, {"key": key, "figures": figures, "items": suite.items, "seconds": suite.seconds})
        return figures


def _missing_judges(config: RunConfig) -> list[str]:
    """Return the packages that judges of this run lack: once they are installed, there is more to measure."""
    classes = {judge_class(codec) for codec in load_codecs(config).values()}
    return missing_packages(sorted({module for cls in classes if cls for module in cls.needed(config.evaluate)}))


def sample_step(config: RunConfig, progress: Progress) -> None:
    """Generate what the report shows (plait.run.samples), once for each checkpoint."""
    folder, key = Path(config.out) / "samples", _key(config)
    if (folder / "key.json").exists() and read_json(folder / "key.json", "samples") == key:
        return
    with timed(config, "generate") as accepted:
        pipeline = load_run(config, config.train.device)
        accepted()
        with atomic_folder(folder) as temporary:
            samples = SampleSet(config, pipeline, temporary, SAMPLES_PER_TASK, progress=progress)
            samples.write(free=FREE_SAMPLES)
            samples.write_more()
            write_json(temporary / "key.json", key)


def save_generated(samples: list[Sample], folder: str, *, also: Sequence[str] = ()) -> None:
    """Write samples as files and samples.jsonl into ``folder``, and show them; ``also`` are suffixes of more files."""
    out = Path(folder)
    with one_writer(out, "--out"):
        start = len(read_jsonl(out / "samples.jsonl")) if (out / "samples.jsonl").exists() else 0
        records = [s.save(out, f"{start + i:04d}", also=also) for i, s in enumerate(samples)]
        before = (out / "samples.jsonl").read_text(encoding="utf-8") if start else ""
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        write_text(out / "samples.jsonl", before + lines)
    for record in records:
        print(f"{record['id']}  " + "  ".join(p.get("text", str(out / p.get("file", ""))) for p in record["output"]))


def _key(config: RunConfig) -> dict[str, Any]:
    """Return what evaluation and samples depend on: the checkpoint, the data, and how they are made."""
    latest = checkpoint.latest(Path(config.out) / "checkpoints")
    settings = {"fixed": identity(config, (FIXED, STREAM)), "measured": identity(config, (MEASURED,))}
    return {"weights": checkpoint.weights_key(latest) if latest else {}, "data": data_fingerprint(config), **settings}


def summarise(config: RunConfig) -> dict[str, Any]:
    """Gather every figure of the run into summary.json and return it."""
    with one_writer(config.out, "run"):
        return _summarise(config)


def _summarise(config: RunConfig) -> dict[str, Any]:
    out = Path(config.out)
    figures: dict[str, Any] = {}
    data = Path(config.data.path)
    if (data / "report.json").exists():
        figures |= _flat(from_json(read_json(data / "report.json", "prepare").get("figures", {})))
    if (out / "metrics.jsonl").exists():
        figures |= _training_figures(config)
    if (out / FILE).exists():
        figures |= _kept_figures(out / FILE)
    times, peaks = _figures_of(out / "timings.json"), _figures_of(out / "memory.json")
    figures |= {f"seconds_{stage}": seconds for stage, seconds in times.items()}
    figures |= {f"peak_memory_gb_{stage}": peak for stage, peak in peaks.items()}
    figures["seconds_total"] = sum(times.values())
    if peaks:
        figures |= {"peak_memory_gb": max(peaks.values()), "peak_memory_measure": MEASURE}
    figures |= {"name": config.name, "seed": config.seed}
    figures |= {str(k): v for k, v in {**hardware(), **versions()}.items()}
    write_summary(out / "summary.json", figures)
    return figures


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if isinstance(v, int | float | str)}


def _training_figures(config: RunConfig) -> dict[str, Any]:
    rows = read_metrics(Path(config.out) / "metrics.jsonl")
    steps = [r for r in rows if "tokens_per_second" in r]
    if not steps:
        return {}
    figures = {"steps": steps[-1]["step"], "tokens": steps[-1]["tokens"], "skipped_steps": steps[-1]["skipped_steps"]}
    rates = sorted(r["tokens_per_second"] for r in steps)
    shares = sorted(r["loader_share"] for r in steps)
    figures |= {"tokens_per_second": rates[len(rates) // 2], "loader_share": shares[len(shares) // 2]}
    figures |= {f"train_{k}": v for k, v in steps[-1].items() if k.startswith("loss/")}
    latest = checkpoint.latest(Path(config.out) / "checkpoints")
    if latest:
        with TensorStore(latest / "model.safetensors", "checkpoint") as store:
            figures["parameters"] = sum(math.prod(t.shape) for t in store.tensors.values())
        counts = checkpoint.read_state(latest)["run"]["loader"]["counts"]
        figures["packing_efficiency"] = counts["tokens"] / (counts["batches"] * config.data.batch_tokens)
        figures |= {f"documents_{k}": counts[k] for k in ("split", "truncated", "skipped")}
    return figures


def report_step(config: RunConfig, progress: Progress) -> Path:
    """Write report.html, with samples of the newest checkpoint (plait report).

    While another process writes the run, which is when people look at it, the page shows what is there: it alone is
    written.
    """
    try:
        with one_writer(config.out, "run"):
            if checkpoint.latest(Path(config.out) / "checkpoints"):
                sample_step(config, progress)
            summarise(config)
            return write_report(config.out)
    except Held:
        who = writer_of(config.out) or "another process"
        progress.print(
            f"report: {config.out!r} is being written by {who}; the page shows what is there, the same "
            "command makes new samples and figures once it has finished"
        )
        return write_report(config.out)


def whole_run(config: RunConfig, progress: Progress, *, restart: bool = False) -> Path:
    """Prepare, train, evaluate, generate and report; goes on where an earlier call was stopped."""
    with one_writer(config.out, "run"):
        if restart:
            _remove_run(config)
        prepare_step(config, progress)
        load_codecs(config)  # raises where an earlier plait prepared the data otherwise: before, not after training
        train_step(config, progress)
        evaluate_step(config, progress)
        return report_step(config, progress)


def _remove_run(config: RunConfig) -> None:
    """Empty the folder of a run whose place another one takes, once its config is known to be accepted."""
    check_prepare(config)
    pick_device(config.train.device)
    out, known = Path(config.out), "config.yaml"
    names = sorted(path.name for path in out.iterdir() if path.name != LOCK)
    require(known in names or not names, "--restart", config.out, f"the folder of a run, which holds {known}")
    needed = {"prepare.codecs_from": [config.prepare.codecs_from], "train.init_from": [config.train.init_from],
              "prepare.source": [folder_of(s) or s for s in sources_of(config.prepare.source)]}  # fmt: skip
    for name, path in ((name, path) for name, paths in needed.items() for path in paths if path):
        outside = not Path(path).resolve().is_relative_to(out.resolve())
        require(outside, name, path, f"outside of {config.out!r}, which --restart removes")
    data = Path(config.data.path)
    inside = data.is_dir() and data.resolve().is_relative_to(out.resolve())
    with one_writer(data, "data.path") if inside else contextlib.nullcontext():
        for name in sorted(names, key=lambda name: name == known):  # it goes last: the folder stays one of a run
            path = out / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
