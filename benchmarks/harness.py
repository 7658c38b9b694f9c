"""How every benchmark measures: arms that take turns, medians with their spread, rows in one file for each machine.

    arms = {"dense": [dense_step], "mot": [mot_step]}              an arm is one function, or several timed apart
    times = paired(arms, turns=9, device="cpu")                    {"dense": [[seconds, ...]], "mot": [[...]]}
    row = ratio_row("step_ratio/mot/...", times["mot"][0], times["dense"][0], against="dense")

On a CPU the clock is process time on one thread, so that other programs on the machine count little; on a GPU it is
CUDA events around a few calls in a row, as in training, where launches run ahead of the device.

A benchmark lists `Measurement`s, each with the names of the rows that it will write, and hands them to `run`. Rows are
written one measurement at a time; what the file has for the same source code is skipped, so that a run that was
stopped goes on where it was (``--again`` measures anew, ``--minutes`` stops early).
"""

import argparse
import functools
import gc
import hashlib
import json
import os
import re
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from plait.common.devices import is_fast_in_bfloat16
from plait.common.errors import ConfigError
from plait.common.files import write_text
from plait.train.metrics import hardware, versions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("plait/**/*.py", "benchmarks/*.py", "tests/helpers/dense_reference.py")
"""What a figure depends on: rows are measured anew when any of these files has changed."""
BUSY = 1.5
"""Load (running processes, mean over a minute) from which a machine with one benchmark counts as busy."""

Row = dict
"""name, value, unit, against, n, spread, commit, versions; and source (digest of SOURCES), load, date."""
Times = dict[str, list[list[float]]]


@dataclass
class Measurement:
    """Arms that are measured together, and the names of the rows that come of it."""

    names: Sequence[str]
    measure: Callable[[], list[Row]]


def paired(
    arms: Mapping[str, Sequence[Callable[[], object]]], *, turns: int, device: str, warmups: int = 2, repeats: int = 3
) -> Times:
    """Return the seconds of each function of each arm, one for each turn.

    The order turns round with every turn and begins with the next arm after two, so that none always has the same
    predecessor: what that leaves in the caches is worth some percent.

    An arm is a sequence of functions that run one after the other and are timed apart (a backward pass, then the
    optimizer). ``repeats`` calls in a row make one time on a GPU; on a CPU it is one call.
    """
    clock = functools.partial(_cuda_seconds, repeats=repeats) if device == "cuda" else _cpu_seconds
    times: Times = {name: [[] for _ in functions] for name, functions in arms.items()}
    for turn in range(-warmups, turns):
        first = turn // 2 % len(arms)
        order = [*arms][first:] + [*arms][:first]
        for name in order[::-1] if turn % 2 else order:
            for taken, function in zip(times[name], arms[name], strict=True):
                seconds = clock(function)
                if turn >= 0:
                    taken.append(seconds)
    return times


def _cpu_seconds(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def _cuda_seconds(function: Callable[[], object], *, repeats: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        function()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / repeats


def cpu_peak_bytes(function: Callable[[], object]) -> int:
    """Return the most bytes that torch's CPU allocator holds at once during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def value_row(name: str, value: float, unit: str, *, against: str = "", times: Sequence[float] = (), n: int = 1) -> Row:
    """Return a row of one figure; with ``times`` its n and its spread (relative, scaled to the value) come of them."""
    spread = half_range(times) / statistics.median(times) * abs(value) if times else 0.0
    return {"name": name, "value": value, "unit": unit, "against": against, "n": len(times) or n, "spread": spread}


def ratio_row(name: str, times: Sequence[float], against_times: Sequence[float], *, against: str) -> Row:
    """Return median / median of two arms that took turns; the spread is that of the turn-by-turn ratios."""
    value = statistics.median(times) / statistics.median(against_times)
    each = [a / b for a, b in zip(times, against_times, strict=True)]
    return {"name": name, "value": value, "unit": "ratio", "against": against, "n": len(each),
            "spread": half_range(each)}  # fmt: skip


def half_range(values: Sequence[float]) -> float:
    """Return half the range of the middle half of the values."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / 2


def parser(
    description: str | None, *, turns: int = 7, grids: Iterable[str] = ("cpu", "gpu", "tiny")
) -> argparse.ArgumentParser:
    """Return a command line with what all benchmarks share; `parsed` reads it."""
    command_line = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    command_line.add_argument("--device", default=default, choices=["cpu", "cuda"])
    command_line.add_argument("--grid", choices=list(grids), help="default: that of the device")
    command_line.add_argument("--turns", type=int, default=turns, help="times that each arm is measured")
    command_line.add_argument("--again", action="store_true", help="measure also what the results file has")
    command_line.add_argument("--minutes", type=float, default=0.0, help="begin nothing after this time (0: no limit)")
    command_line.add_argument("--out", type=Path, default=RESULTS, help="folder of the results file")
    return command_line


def parsed(command: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line (None: the process's own), with the device's grid where none is named."""
    options = command.parse_args(arguments)
    options.grid = options.grid or ("gpu" if options.device == "cuda" else "cpu")
    return options


def run(measurements: Iterable[Measurement], options: argparse.Namespace) -> int:
    """Measure what is missing, print and write its rows; return an exit code: 0 when the file has every row.

    1 means that some measurement failed (its error is printed, the others are done), 3 that the time was up.
    """
    if options.device == "cpu":
        torch.set_num_threads(1)  # process time of several threads would count those that wait
    started, code = time.monotonic(), 0
    path = options.out / f"{slug(options.device)}.json"
    for wanted in measurements:
        have = {r["name"] for r in read_rows(path) if r["source"] == source()}
        if have.issuperset(wanted.names) and not options.again:
            continue
        if options.minutes and time.monotonic() - started > 60 * options.minutes:
            print(f"{options.minutes:g} minutes are over: rerun the same command to resume")
            return code or 3
        try:
            rows = wanted.measure()
            missing = set(wanted.names) ^ {r["name"] for r in rows}
            if missing:
                raise RuntimeError(f"rows promised and not written, or the other way round: {sorted(missing)}")
        except Exception:
            traceback.print_exc()
            print(f"FAILED: {', '.join(wanted.names)}")
            code = 1
            continue
        finally:
            gc.collect()
            if options.device == "cuda":
                torch.cuda.empty_cache()
        write_rows(rows, path)
    return code


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Put rows in a results file, in place of those of the same name, and print them."""
    packages = versions()
    packages.pop("commit", None)
    facts = {"commit": commit(), "source": source(), "load": round(os.getloadavg()[0], 2),
             "date": time.strftime("%Y-%m-%d"), "versions": packages}  # fmt: skip
    old = {r["name"]: r for r in read_rows(path)}
    for row in rows:
        old[row["name"]] = row | facts
        print(f"{row['name']:64s} {row['value']:12.4g} ± {row['spread']:.2g} {row['unit']}", flush=True)
    lines = ",\n".join("  " + json.dumps(old[name]) for name in sorted(old))
    write_text(path, f'{{"hardware": {json.dumps(hardware())},\n "rows": [\n{lines}\n ]}}\n')


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a results file, none where there is no file (raises ConfigError for a broken one)."""
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (ValueError, KeyError):
        raise ConfigError(f"--out: {str(path)!r} is no results file, move it away or name another folder") from None


def slug(device: str) -> str:
    """Return the short name of the hardware that names its results file, such as cpu-2, cpu-2-float32 (whose processor
    has no instructions for bfloat16: other ratios) or h100."""
    facts = hardware()
    if device == "cpu":
        return f"cpu-{facts['cpu_cores']}{'' if is_fast_in_bfloat16(device) else '-float32'}"
    words = re.split(r"[^a-z0-9]+", facts["gpu"].lower())
    return "-".join(w for w in words if not re.fullmatch(r"nvidia|\d+gb|hbm\w*|sxm\w*|pcie|nvl|", w))


@functools.cache
def source() -> str:
    """Return a digest of the source files that figures depend on."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(p for pattern in SOURCES for p in ROOT.glob(pattern)):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def commit() -> str:
    """Return the commit, with "+changes" where the sources differ from it; "unknown" outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", *(f":(glob){s}" for s in SOURCES)], capture_output=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if changed.returncode else "") if head.returncode == 0 else "unknown"
