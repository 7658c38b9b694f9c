"""What a study found: runs, learning rates, step matching and the paper's figures, as plain rows and as tables."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.compare.curves import TRAINING, VALIDATION, Curve, Key, read_curves, step_seconds
from plait.compare.runner import DONE, StudyRun, Tuned, status
from plait.compare.step_matching import Match, Spread, match
from plait.compare.study import Study
from plait.compare.tables import markdown
from plait.files import read_json, write_json, write_text
from plait.train.metrics import hardware, versions


@dataclass
class Pair:
    """An arm and the one that it is matched with, on one set and modality."""

    arm: str
    against: str
    split: str
    modality: str
    matches: dict[int, Match]
    """By seed: how many steps the arm needs."""
    reverse: dict[int, Match]
    """By seed: how many steps the other one needs of the arm's."""


@dataclass
class Found:
    """Everything that tables and figures are made from."""

    study: Study
    curves: dict[tuple[str, int], dict[Key, Curve]]
    """By arm and seed, of finished runs only."""
    pairs: list[Pair]
    results: dict[str, Any]
    """What results.json holds."""


def gather(run: StudyRun) -> Found:
    """Read every run of a study, match what is finished, and return rows; nothing that was planned is left out."""
    study, config = run.study, run.study.config
    names = list(run.plan)
    folders = {(arm, seed): run.folder(arm, seed) for arm in names for seed in config.arms[arm].seeds}
    runs = [_run_row(run, arm, seed, folder) for (arm, seed), folder in folders.items()]
    finished = [(r["arm"], r["seed"]) for r in runs if r["status"] == "finished"]
    modalities = list(study.base_config().model.modalities)
    curves = {key: _in_order(read_curves(folders[key]), modalities) for key in finished}
    warmup = study.base_config().train.warmup_steps
    pairs = [pair for arm in names for pair in _pairs(arm, config.arms[arm].against, curves, warmup)]
    rows = [_match_row(pair, run, folders) for pair in pairs]
    trials = {owner: run.read_trials(owner) for owner in dict.fromkeys(map(run.rate_owner, names)) if owner}
    results = {
        "study": config.name,
        "about": config.about,
        "budget": dataclasses.asdict(config.budget),
        "warmup_steps": warmup,
        "arms": [_arm_row(run, arm, trials) for arm in names],
        "tuning": [t for tuned in trials.values() for t in tuned.trials],
        "runs": runs,
        "matches": rows,
        "claims": [_claim_row(dataclasses.asdict(entry), rows) for entry in config.paper],
        "machine": hardware() | versions(),
    }
    return Found(study, curves, pairs, results)


def _in_order(curves: dict[Key, Curve], modalities: list[str]) -> dict[Key, Curve]:
    """Return the curves with the means of all validation sets first, and modalities as the config has them."""
    splits = list(dict.fromkeys([VALIDATION, TRAINING, *(split for split, _ in curves)]))
    return {(s, m): curves[s, m] for s in splits for m in modalities if (s, m) in curves}


def _arm_row(run: StudyRun, arm: str, trials: dict[str, Tuned]) -> dict[str, Any]:
    record, plan = run.study.config.arms[arm], run.plan[arm]
    other = run.plan.get(record.against)
    tuned = trials.get(run.rate_owner(arm))
    rate = tuned.learning_rate if tuned else run.study.base_config().train.learning_rate
    return {
        "arm": arm,
        "about": record.about,
        "against": record.against,
        "parameters": plan.parameters,
        "active_parameters": plan.active_parameters,
        "flops_a_step": plan.flops.formula,
        "flops_a_step_counted": plan.flops.counted,
        "flops_ratio": plan.flops.formula / other.flops.formula if other else None,
        "steps": plan.steps,
        "learning_rate": rate,
        "learning_rate_from": "tuned" if record.tune else record.learning_rate_of or "config",
        "learning_rate_at_edge": bool(tuned and tuned.at_edge),
    }


def _run_row(run: StudyRun, arm: str, seed: int, folder: Path) -> dict[str, Any]:
    state, error = status(folder)
    row = {"arm": arm, "seed": seed, "status": state, "error": error}
    if state == "finished":
        row |= read_json(folder / DONE, "run") | {"step_seconds": step_seconds(folder)}
    return row


def _pairs(arm: str, against: str, curves: dict, warmup: int) -> list[Pair]:
    if arm == against:
        return []
    seeds = [s for a, s in curves if a == arm and (against, s) in curves]
    keys = {key: None for s in seeds for key in curves[arm, s]}
    pairs = []
    for split, modality in keys:
        mine, theirs = {}, {}
        for s in seeds:
            a, b = (curves[name, s].get((split, modality), Curve()) for name in (arm, against))
            if a.losses and b.losses:
                mine[s] = match(b.steps, b.losses, a.steps, a.losses, warmup=warmup)
                theirs[s] = match(a.steps, a.losses, b.steps, b.losses, warmup=warmup)
        if mine:
            pairs.append(Pair(arm, against, split, modality, mine, theirs))
    return pairs


def _match_row(pair: Pair, run: StudyRun, folders: dict) -> dict[str, Any]:
    found, reverse = list(pair.matches.values()), list(pair.reverse.values())
    steps = Spread.of([m.ratio for m in found], [m.is_bound for m in found])
    flops = run.plan[pair.arm].flops.formula / run.plan[pair.against].flops.formula
    spreads = {
        "steps_ratio": steps,
        "end_ratio": Spread.of([m.end_ratio for m in found], [m.end_is_bound for m in found]),
        "reverse_ratio": Spread.of([m.ratio for m in reverse], [m.is_bound for m in reverse]),
        "flops_ratio": steps and steps.times(flops),
        "time_ratio": steps and steps.times(_time_of_a_step(pair, folders)),
    }
    row = {"arm": pair.arm, "against": pair.against, "split": pair.split, "modality": pair.modality}
    row |= {"seeds": len(found)}
    row |= {name: sum(getattr(m, name) for m in found) for name in ("points", "censored", "early")}
    for name, spread in spreads.items():
        row[name] = spread and spread.mean
        row |= {f"{name}_{edge}": spread and getattr(spread, edge) for edge in ("low", "high")}
        row[f"{name}_is_bound"] = bool(spread and spread.is_bound)
    return row


def _time_of_a_step(pair: Pair, folders: dict) -> float | None:
    """Return the measured time of the arm's step over the other's, each the mean over the seeds that both have."""
    times = [[step_seconds(folders[arm, seed]) for seed in pair.matches] for arm in (pair.arm, pair.against)]
    if any(t is None for side in times for t in side):
        return None
    return sum(times[0]) / sum(times[1])


def _claim_row(entry: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Put what was measured beside a figure of the paper; None where it was not."""
    same = [r for r in rows if all(r[k] == entry[k] for k in ("arm", "modality", "split"))]
    row, figure = (same[0] if same else {}), entry["figure"]
    return {
        "claim": entry["claim"],
        "model": entry["model"],
        "paper": entry["value"],
        "unit": entry["unit"],
        "arm": entry["arm"],
        "modality": entry["modality"],
        "split": entry["split"],
        "figure": figure,
        "ours": row.get(figure),
        "low": row.get(f"{figure}_low"),
        "high": row.get(f"{figure}_high"),
        "is_bound": row.get(f"{figure}_is_bound", False),
        "seeds": row.get("seeds", 0),
    }


def write_results(found: Found) -> Path:
    """Write results.json and results.md into the study's folder of results, and return that folder."""
    folder = found.study.results
    write_json(folder / "results.json", found.results)
    write_text(folder / "results.md", markdown(found.results))
    return folder
