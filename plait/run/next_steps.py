"""What can be done with a finished run: commands that work as they are printed."""

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.config.run import RunConfig
from plait.data.sources import codec_records
from plait.run.options import KEYS
from plait.run.samples import FOLDER
from plait.train.metrics import read_jsonl


def next_steps(config: RunConfig, report: Path, command: str) -> list[str]:
    """Return lines that say what can be done and how; ``command`` is the one that made the run ("quickstart")."""
    program, python = how_called()
    samples, out = Path(config.out) / "samples", shlex.quote(config.out)
    keys = {name: record["key"] for name, (_, record) in codec_records(config).items()}
    steps = [("open the report", f"{python} -m webbrowser {shlex.quote(str(report))}")]
    for record in _examples(samples):
        prompt_part, output = record["prompt"][0], record["truth"][0]["modality"]
        if "text" in prompt_part:
            prompt, many = f"--text {shlex.quote(prompt_part['text'])}", " --count 4" if output == "image" else ""
            steps.append((f"make {output} from text", f"{program} generate {out} {prompt} --output {output}{many}"))
        else:
            given, file = prompt_part["modality"], str(samples / prompt_part["file"])
            key = keys.get(given, given)
            prompt = f"--{key} {shlex.quote(file)}" if key in KEYS else f"--part {shlex.quote(f'{key}={file}')}"
            steps.append((f"make {output} from {given}", f"{program} generate {out} {prompt} --output {output}"))
    if (samples / FOLDER).is_dir():
        source = shlex.quote(str(samples / FOLDER))
        steps.append(("train on a folder", f"{program} {command} --out runs/mine --prepare.source {source}"))
    width = max(len(what) for what, _ in steps)
    return [f"  {what:<{width}}  {line}" for what, line in steps]


def _examples(samples: Path) -> Iterator[dict[str, Any]]:
    """Yield one sample of each task that makes one part from one."""
    records = read_jsonl(samples / "samples.jsonl") if (samples / "samples.jsonl").exists() else []
    for record in {record["task"]: record for record in reversed(records)}.values():
        if len(record.get("prompt", [])) == len(record.get("truth", [])) == 1:
            yield record


def how_called() -> tuple[str, str]:
    """Return how plait, and Python, are called here: as they were, or by name where that finds the same."""
    python = _named("python", sys.executable)
    called = Path(sys.argv[0])
    is_program = called.is_file() and called.name != "__main__.py"  # it may be -c, or a notebook's
    return (_named(called.name, str(called)) if is_program else f"{python} -m plait"), python


def _named(name: str, path: str) -> str:
    executable = shutil.which(name)
    if executable and Path(executable).absolute() == Path(path).absolute():
        return name
    try:
        return shlex.quote(str(Path(path).absolute().relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(path)
