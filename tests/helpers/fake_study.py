"""Records of a shipped study as if it had been run: smooth curves, each arm as fast as a number says."""

import itertools

import numpy as np

from plait.compare.curves import TRAINING, VALIDATION, Curve
from plait.compare.records import Records
from plait.compare.study import Study, load_study
from plait.config.shipped import config_path, study_path

SPEED = {
    "dense": {}, "dense_48": {"text": 1.5, "image": 1.6}, "dense_64": {"text": 1.7, "image": 1.8},
    "dense_128": {"text": 2.5, "image": 3.0}, "mot": {"text": 1.7, "image": 2.9, "speech": 5.0},
    "mot_48": {"text": 2.4, "image": 4.4}, "mot_64": {"text": 2.6, "image": 4.9},
    "mot_128": {"text": 3.6, "image": 7.9},
    "ffn": {"text": 1.5, "image": 2.1}, "moe_expert_choice": {"text": 1.6, "image": 2.0}, "moe_causal": {"image": 1.3},
    "dense_parameters": {"text": 1.4, "image": 0.9}, "random": {"image": 1.02},
}  # fmt: skip
"""How many times faster than dense; 1 where not said."""
LOWEST = {"text": 1.2, "image": 3.1, "speech": 2.0}
SIZE = {"48": 1.7, "64": 2.6, "128": 7.8}


def shipped(name: str, out="") -> Study:
    return load_study(study_path(name), find_base=config_path, out=str(out))


def fake_records(study: Study, *, arms=(), steps=1000, seeds=None) -> Records:
    """Return records of all arms, or some, of a study."""
    c, modalities = study.config, list(study.base_config().model.modalities)
    names = [arm for arm in c.arms if not arms or arm in arms]
    records = Records(machine={"cpu": "an imagined machine", "torch": "0"})
    for number, arm in enumerate(names):
        flops = 2.1e11 * SIZE.get(arm.rpartition("_")[2], 1.0)
        size = {"parameters": 3_000_000 + 900_000 * number, "active_parameters": 3_000_000}
        size["steps"] = c.budget.steps or steps
        rate = {"learning_rate": 4e-3, "learning_rate_from": "tuned", "learning_rate_at_edge": False}
        cost = {"flops_a_step": flops, "flops_a_step_counted": 1.07 * flops}
        records.arms.append({"arm": arm} | size | rate | cost)
        for seed in c.arms[arm].seeds if seeds is None else seeds:
            records.runs.append({"arm": arm, "seed": seed, "status": "finished", "error": "", "steps": steps,
                                 "tokens": 4096 * steps, "seconds": 900.0 + 9 * number, "skipped_steps": 0,
                                 "step_seconds": 0.9 + 0.01 * number})  # fmt: skip
            records.curves[arm, seed] = _curves(
                arm, number, seed, modalities, range(c.validate_every, steps + 1, c.validate_every)
            )
        if c.arms[arm].tune:
            for rate in c.tuning.learning_rates:
                losses = {f"validation/{m}": LOWEST[m] + 1 + abs(np.log(rate / 4e-3)) / 9 for m in modalities}
                records.tuning.append({"arm": arm, "learning_rate": rate, "score": 2.5, "error": "", **losses})
    return records


def _curves(arm: str, number: int, seed: int, modalities: list[str], steps: range) -> dict:
    found = {}
    for split in (VALIDATION, "seen", "unseen", TRAINING):
        for m in modalities:
            rng = np.random.default_rng((number, seed, len(split), len(m)))
            speed = SPEED.get(arm, {}).get(m, 1.0) * (1 + 0.04 * rng.standard_normal())
            t = np.array(steps) * speed
            losses = LOWEST[m] + 9 * t**-0.45 + 0.004 * rng.standard_normal(len(t))
            found[split, m] = Curve(list(steps), losses.tolist())
    return found


def fake_analyses(study: Study, arms) -> dict[str, list[dict]]:
    """Return rows as `plait.compare.analysis` writes them."""
    modalities = list(study.base_config().model.modalities)
    rows = {"components": [], "layers": [], "attention": [], "conflict": []}
    for number, arm in enumerate(arms):
        for seed in (0, 1):
            rng, head = np.random.default_rng((number, seed)), {"arm": arm, "seed": seed, "step": 1000}
            for layer in range(5):
                separation = 0.1 + 0.06 * layer * (1 + number / 3) + 0.01 * seed
                rows["layers"].append({**head, "layer": layer, "first": 0.4, "second": 0.2, "separation": separation})
                for k, m in enumerate(modalities):
                    x, y = (rng.standard_normal((60, 2)) + np.array([(k - 0.5) * layer, k * 0.3 * layer])).T.tolist()
                    rows["components"].append({**head, "layer": layer, "modality": m, "x": x, "y": y})
            for layer in range(4):
                here = {**head, "layer": layer}
                for q, k in itertools.product(modalities, repeat=2):
                    mass = 0.2 + 0.05 * layer + 0.02 * number + 0.01 * seed
                    rows["attention"].append({**here, "query": q, "key": k, "mass": mass, "even": 0.4})
                for step, part in itertools.product((500, 1000), ("qkv", "o", "ffn", "norm", "all")):
                    cosine = 0.1 - 0.04 * layer + 0.05 * number - step / 2e4 + 0.01 * seed + len(part) / 99
                    for first, second in itertools.combinations_with_replacement(modalities, 2):
                        both = {"first": first, "second": second, "ratio": 1.0}
                        agreed = 0.7 if first == second else cosine
                        rows["conflict"].append({**here, "step": step, "component": part, "cosine": agreed, **both})
    return rows
