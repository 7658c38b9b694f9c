"""What a study found: step matching and the paper's figures, as plain rows and as tables."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.common.files import write_json, write_text
from plait.compare.curves import TRAINING, VALIDATION, Curve, Key
from plait.compare.records import Records, Run
from plait.compare.scaling import fit_families
from plait.compare.shares import difference_rows, share_rows
from plait.compare.step_matching import Match, Spread, match
from plait.compare.study import Study
from plait.compare.tables import markdown

UNITS = {"next_token": "nats per token", "diffusion": "squared error"}
"""What the loss of an objective is counted in."""


NOTHING = {"arms": [], "tuning": [], "runs": [], "scores": [], "shares": [], "share_differences": [], "matches": [],
           "claims": [], "machine": {}, "data": "",
           "scaling": {"points": [], "fits": [], "lines": [], "savings": []}}  # fmt: skip
"""results.json of what has no more than its name."""


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
class Matched:
    """Runs that were matched: what tables and figures are made from."""

    arms: list[str]
    """All that may come, in order; the place of an arm is its colour."""
    units: dict[str, str]
    """What a loss is counted in, by modality, in order."""
    curves: dict[Run, dict[Key, Curve]]
    """By arm and seed, of finished runs only."""
    pairs: list[Pair]
    results: dict[str, Any]
    """What results.json holds."""
    facts: str
    """What was run, in a line."""


@dataclass
class Found(Matched):
    """What a study found."""

    study: Study
    records: Records


def gather(study: Study, records: Records) -> Found:
    """Match what is finished, and return rows."""
    config, base = study.config, study.base_config()
    names = [row["arm"] for row in records.arms]
    learned = {name: m for name, m in base.model.modalities.items() if base.modalities[name].learns}
    units = {name: UNITS[m.objective] for name, m in learned.items() if m.objective in UNITS}
    warmup = base.train.warmup_steps
    curves = {key: _in_order(run_curves, units) for key, run_curves in records.curves.items()}
    pairs = [pair for arm in names for pair in _pairs(arm, config.arms[arm].against, curves, warmup)]
    matches = [match_row(pair, records) for pair in pairs]
    against = {name: config.arms[name].against for name in names}
    results = {
        "study": config.name,
        "about": config.about,
        "budget": dataclasses.asdict(config.budget),
        "warmup_steps": warmup,
        "arms": [_arm_row(row, study, records) for row in records.arms],
        "tuning": records.tuning,
        "runs": records.runs,
        "scores": records.scores,
        "shares": share_rows(config.shares, names, records.scores),
        "share_differences": difference_rows(config.shares, against, records.scores),
        "matches": matches,
        "scaling": fit_families(config.scaling, records),
        "claims": [_claim_row(dataclasses.asdict(entry), matches, records) for entry in config.paper],
        "machine": records.machine,
        "data": records.data,
    }
    return Found(list(config.arms), units, curves, pairs, results, _facts(results), study, records)


def _facts(results: dict[str, Any]) -> str:
    done = [r for r in results["runs"] if r["status"] == "finished"]
    budget = results["budget"]
    each = f"{budget['steps']:,} steps each" if budget["steps"] else f"{budget['flops']:.3g} FLOPs each"
    facts = [f"{len(results['arms'])} arms", each, f"{len(done)} of {len(results['runs'])} runs finished"]
    return " · ".join([*facts, *([machine] if (machine := results["machine"].get("cpu", "")) else [])])


def _in_order(curves: dict[Key, Curve], modalities: Iterable[str]) -> dict[Key, Curve]:
    """Return the curves with the means of all validation sets first, and modalities as the config has them."""
    splits = list(dict.fromkeys([VALIDATION, TRAINING, *(split for split, _ in curves)]))
    return {(s, m): curves[s, m] for s in splits for m in modalities if (s, m) in curves}


def _arm_row(row: dict[str, Any], study: Study, records: Records) -> dict[str, Any]:
    record = study.config.arms[row["arm"]]
    other = records.arm(record.against)
    ratio = row["flops_a_step"] / other["flops_a_step"] if other else None
    return {"arm": row["arm"], "about": record.about, "against": record.against, "flops_ratio": ratio} | row


def _pairs(arm: str, against: str, curves: dict, warmup: int) -> list[Pair]:
    if arm == against:
        return []
    seeds = [s for a, s in curves if a == arm and (against, s) in curves]
    keys = {key: None for s in seeds for key in curves[arm, s]}
    pairs = []
    for key in keys:
        by_seed = {s: (curves[arm, s].get(key, Curve()), curves[against, s].get(key, Curve())) for s in seeds}
        pairs.append(match_curves(arm, against, key, by_seed, warmup))
    return [pair for pair in pairs if pair.matches]


def match_curves(arm: str, against: str, key: Key, curves: dict[int, tuple[Curve, Curve]], warmup: float) -> Pair:
    """Match the curves (the arm's, the other one's) of each seed; a seed of which one has no loss is left out."""
    matches, reverse = {}, {}
    for seed, (a, b) in curves.items():
        if a.losses and b.losses:
            matches[seed] = match(b.steps, b.losses, a.steps, a.losses, warmup=warmup)
            reverse[seed] = match(a.steps, a.losses, b.steps, b.losses, warmup=warmup)
    return Pair(arm, against, *key, matches, reverse)


def match_row(pair: Pair, records: Records) -> dict[str, Any]:
    matches, reverse = list(pair.matches.values()), list(pair.reverse.values())
    steps = Spread.of([m.ratio for m in matches], [m.is_bound for m in matches])
    spreads = {
        "steps_ratio": steps,
        "end_ratio": Spread.of([m.end_ratio for m in matches], [m.end_is_bound for m in matches]),
        "reverse_ratio": Spread.of([m.ratio for m in reverse], [m.is_bound for m in reverse]),
        "flops_ratio": steps and steps.times(flops_of_a_step(pair, records)),
        "time_ratio": steps and steps.times(time_of_a_step(pair, records)),
    }
    row = {"arm": pair.arm, "against": pair.against, "split": pair.split, "modality": pair.modality}
    row |= {"seeds": steps.seeds if steps else 0}  # a seed whose levels were all passed early says nothing
    row |= {name: sum(getattr(m, name) for m in matches) for name in ("points", "censored", "early")}
    for name, spread in spreads.items():
        row[name] = spread and spread.mean
        row |= {f"{name}_{edge}": spread and getattr(spread, edge) for edge in ("low", "high")}
        row[f"{name}_is_bound"] = bool(spread and spread.is_bound)
    return row


def flops_of_a_step(pair: Pair, records: Records) -> float | None:
    """Return the operations of the arm's step over the other's."""
    arm, other = records.arm(pair.arm), records.arm(pair.against)
    return arm["flops_a_step"] / other["flops_a_step"] if arm and other else None


def time_of_a_step(pair: Pair, records: Records) -> float | None:
    """Return the measured time of the arm's step over the other's, each the mean over the seeds that both have."""
    times = [[records.step_seconds(arm, seed) for seed in pair.matches] for arm in (pair.arm, pair.against)]
    if any(t is None for side in times for t in side):
        return None
    return sum(times[0]) / sum(times[1])


def _claim_row(entry: dict[str, Any], rows: list[dict[str, Any]], records: Records) -> dict[str, Any]:
    """Put what was measured beside a figure of the paper; None where it was not."""
    keys = ("claim", "model", "unit", "arm", "modality", "split", "figure", "score")
    row = {k: entry[k] for k in keys} | {"paper": entry["value"]}
    if entry["score"]:
        return row | {"split": "", "figure": ""} | _paper_score(entry, records)
    same = [r for r in rows if all(r[k] == entry[k] for k in ("arm", "modality", "split"))]
    match, figure = (same[0] if same else {}), entry["figure"]
    return row | {
        "ours": match.get(figure),
        "low": match.get(f"{figure}_low"),
        "high": match.get(f"{figure}_high"),
        "is_bound": match.get(f"{figure}_is_bound", False),
        "seeds": match.get("seeds", 0),
    }


def _paper_score(entry: dict[str, Any], records: Records) -> dict[str, Any]:
    """Return what was measured of a score over the arm's seeds; None where it was not."""
    spread = Spread.of([row.get(entry["score"]) for row in records.scores if row["arm"] == entry["arm"]])
    if not spread:
        return {"ours": None, "low": None, "high": None, "is_bound": False, "seeds": 0}
    return {"ours": spread.mean, "low": spread.low, "high": spread.high, "is_bound": False, "seeds": spread.seeds}


def write_results(matched: Matched, folder: Path) -> None:
    """Write results.json and results.md into a folder."""
    write_json(folder / "results.json", matched.results)
    write_text(folder / "results.md", markdown(matched.results))
