"""The tables of a study, from the rows of results.json, and as Markdown."""

from typing import Any

from plait.compare.curves import TRAINING, VALIDATION
from plait.compare.shares import count_of, figure_of
from plait.compare.step_matching import Spread

Table = tuple[str, str, list[str], list[list[str]]]
"""Title, note, header, rows."""

OPTIONAL = ("lowest to highest", "FLOPs", "time", "early")
"""Columns of step matching that are left out where no row has anything to say."""


def tables(results: dict[str, Any]) -> list[Table]:
    """Return all tables that have rows."""
    all_tables = [_claims_table(results), *_matches_tables(results), _scores_table(results), _shares_table(results),
                  _groups_table(results), _scaling_table(results), _arms_table(results), _tuning_table(results),
                  _runs_table(results)]  # fmt: skip
    return [table for table in all_tables if table[3]]


def markdown(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = [f"# {results['study']}", "", results["about"], ""] if results["about"] else [f"# {results['study']}", ""]
    for title, note, header, rows in tables(results):
        lines += [f"## {title}", "", *([note, ""] if note else []), *markdown_table(header, rows)]
    return "\n".join(lines)


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table's lines, with an empty one at its end."""
    return [*("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *map(_escaped, rows))), ""]


def _escaped(row: list[str]) -> list[str]:
    return [cell.replace("|", "\\|").replace("\n", " ") for cell in row]


def _arms_table(results: dict) -> Table:
    header = ["arm", "what it is", "parameters", "active", "FLOPs per step", "counted by torch", "ratio", "steps",
              "learning rate"]  # fmt: skip
    rows = []
    for a in results["arms"]:
        edge = ", at the edge" if a["learning_rate_at_edge"] else ""
        rate = f"{number(a['learning_rate'])} ({a['learning_rate_from']}{edge})"
        rows.append([a["arm"], a["about"], f"{a['parameters']:,}", f"{a['active_parameters']:,}",
                     f"{a['flops_a_step']:.4g}", f"{a['flops_a_step_counted']:.4g}", number(a["flops_ratio"]),
                     f"{a['steps']:,}", rate])  # fmt: skip
    note = "Operations are forward and backward, without padding; the ratio is to the arm that each is matched with."
    return "Arms", note, header, rows


def _claims_table(results: dict) -> Table:
    header = ["claim", "paper (its model)", "ours", "lowest to highest", "seeds", "set", "unit"]
    same: dict[tuple, list[dict]] = {}
    keys = ("claim", "arm", "modality", "split", "figure", "score", "unit")
    for c in results["claims"]:  # one row for all of the paper's models
        same.setdefault(tuple(c[k] for k in keys), []).append(c)
    rows = []
    for group in same.values():
        c, paper = group[0], [number(g["paper"]) + (f" ({g['model']})" if g["model"] else "") for g in group]
        rows.append([c["claim"], ", ".join(paper), bounded(c["ours"], c["is_bound"]),
                     interval(c["low"], c["high"], c["seeds"]), str(c["seeds"]), c["split"].replace("_", " ") or "–",
                     c["unit"]])  # fmt: skip
    return "Beside the paper", "", header, rows


def matching_table(results: dict) -> Table:
    """Return the table of step matching on the training losses and on the mean of the validation sets."""
    return _matches_tables(results)[0]


def _matches_tables(results: dict) -> list[Table]:
    header = ["arm", "against", "set", "modality", "steps", "lowest to highest", "at the end", "reverse", "FLOPs",
              "time", "levels", "censored", "early", "seeds"]  # fmt: skip
    whole: list[list[Any]] = []
    single: list[list[Any]] = []
    for m in results["matches"]:
        keys = ("end_ratio", "reverse_ratio", "flops_ratio", "time_ratio")
        row = [m["arm"], m["against"], m["split"].replace("_", " "), m["modality"],
               bounded(m["steps_ratio"], m["steps_ratio_is_bound"]),
               interval(m["steps_ratio_low"], m["steps_ratio_high"], m["seeds"]),
               *(bounded(m[k], m[f"{k}_is_bound"]) for k in keys), str(m["points"]), str(m["censored"]),
               str(m["early"]), str(m["seeds"])]  # fmt: skip
        (whole if m["split"] in (TRAINING, VALIDATION) else single).append(row)
    note = (
        "The share of the other arm's steps (FLOPs, time) that an arm needs for the same loss; ≥ where it did not "
        "reach some of the levels. Reverse: the share of this arm's steps that the other one needs. Levels, and "
        "those that are censored, are counted over all seeds."
    )
    empty = [i for i, name in enumerate(header)
             if name in OPTIONAL and all(row[i] in ("–", "0") for row in [*whole, *single])]  # fmt: skip
    header, *both = [[cell for i, cell in enumerate(row) if i not in empty] for row in [header, *whole, *single]]
    note += " Early: passed before the first evaluation, and left out." if "early" in header else ""
    whole, single = both[: len(whole)], both[len(whole) :]
    return [("Step matching", note, header, whole), ("Step matching on each validation set", "", header, single)]


def _scores_table(results: dict) -> Table:
    """One row a figure, one column an arm."""
    rows = results["scores"]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    shares = {figure_of(row["share"], row["group"]) for row in results["shares"]}  # in their own tables
    shares |= {count_of(figure) for figure in shares}
    figures = [name for name in dict.fromkeys(k for row in rows for k in row) if name not in ("arm", "seed", *shares)]
    cells = []
    for figure in figures:
        plain = figure.partition("/")[0]
        is_first_split = plain != figure and all(row.get(plain) == row.get(figure) for row in rows)
        if is_first_split or figure.endswith(("_low", "_high")):  # said twice, or an interval of one run alone
            continue
        spreads = [Spread.of([row.get(figure) for row in rows if row["arm"] == arm]) for arm in arms]
        cells.append([figure_words(figure), *map(_mean_and_range, spreads)])
    note = (
        "What plait evaluate measures of finished runs: means over seeds, in brackets the lowest and "
        "highest. A figure with a slash is of the validation split it names, others of the first."
    )
    seeds = [len({row["seed"] for row in rows if row["arm"] == arm}) for arm in arms]
    header = [f"{arm} ({count} seed{'s' * (count > 1)})" for arm, count in zip(arms, seeds, strict=True)]
    return "What the models make", note, ["figure", *header], cells


def figure_words(figure: str) -> str:
    """Return the name of a figure of `plait evaluate` as it is read."""
    return figure.replace("_", " ").replace("frechet", "Fréchet")


def _mean_and_range(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    span = interval(spread.low, spread.high, spread.seeds)
    return number(spread.mean) + (f" ({span})" if span != "–" and spread.low < spread.high else "")


def _shares_table(results: dict) -> Table:
    """One row for each share and arm: all tries together, and the difference from the arm that it is matched with."""
    header = ["share", "arm", "mean", "lowest to highest", "seeds", "all tries", "95% interval", "against",
              "difference", "lowest to highest", "95% interval", "better, worse"]  # fmt: skip
    more = {(row["share"], row["arm"]): row for row in results["share_differences"]}
    rows = []
    for r in (row for row in results["shares"] if not row["group"]):
        row = [figure_words(r["share"]), r["arm"], number(r["mean"]), interval(r["low"], r["high"], r["seeds"]),
               str(r["seeds"]), f"{r['hits']:,} of {r['tries']:,}",
               interval(r["interval_low"], r["interval_high"], 2)]  # fmt: skip
        d = more.get((r["share"], r["arm"]))
        row += [d["against"], signed(d["mean"]), signed_interval(d["low"], d["high"], d["seeds"]),
                signed_interval(d["interval_low"], d["interval_high"], d["pairs"]),
                f"{d['better']}, {d['worse']} of {d['pairs']}"] if d else ["–"] * 5  # fmt: skip
        rows.append(row)
    note = (
        "Shares of tries, the same ones for every run: the mean over seeds with the lowest and highest, and all tries "
        "together with Wilson's interval. The difference is from the arm that each is matched with, seed by seed; its "
        "interval resamples pairs of the same seed and group of tries, of which some are better and some worse."
    )
    return "The models tried", note, header, rows


def _groups_table(results: dict) -> Table:
    """One row for each group of tries, one column an arm: all seeds together."""
    rows = [row for row in results["shares"] if row["group"]]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for r in rows:
        text = f"{number(r['hits'] / r['tries'])} ({r['hits']:,} of {r['tries']:,})"
        cells.setdefault((r["share"], r["group"]), {})[r["arm"]] = text
    lines = [[figure_words(share), group, *(by_arm.get(arm, "–") for arm in arms)]
             for (share, group), by_arm in cells.items()]  # fmt: skip
    return "The models tried by group", "All seeds together.", ["share", "group", *arms], lines


def _scaling_table(results: dict) -> Table:
    """The laws' exponents, and the share of the first family's operations that another one needs by its law."""
    header = ["family", "set", "modality", "figure", "value", "95% interval", "sizes", "extrapolated"]
    rows = []
    for r in results["scaling"]["fits"]:
        rows.append([r["family"], r["split"], r["modality"], "exponent", number(r["exponent"]),
                     _between(r), str(r["sizes"]), "no"])  # fmt: skip
    for r in results["scaling"]["savings"]:
        where = "at the largest run" if r["beyond"] == 1 else f"at {r['beyond']:g} times the largest run"
        rows.append([r["family"], r["split"], r["modality"], f"share of FLOPs {where}", number(r["share"]),
                     _between(r), "–", "extrapolated" if r["is_extrapolation"] else "no"])  # fmt: skip
    note = (
        "The law: loss = exp(a) FLOPs^-exponent, through the final losses. No irreducible loss is fitted, as so "
        "few sizes cannot tell it from the slope; so read what is extrapolated with care."
    )
    return "Scaling", note, header, rows


def _between(row: dict) -> str:
    return "–" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"


def _tuning_table(results: dict) -> Table:
    losses = list(dict.fromkeys(k for t in results["tuning"] for k in t if k.startswith("validation/")))
    header = ["arm", "learning rate", "score", *(k.removeprefix("validation/") for k in losses), "error"]
    elsewhere = [t.get("data", "") != results["data"] for t in results["tuning"]]
    rows = [[t["arm"], number(t["learning_rate"]) + " *" * other, number(t["score"]),
             *(number(t.get(k)) for k in losses), t["error"]]
            for t, other in zip(results["tuning"], elsewhere, strict=True)]  # fmt: skip
    note = "Whole runs of the first seed. Score: geometric mean of the validation losses; the lowest is taken."
    if any(elsewhere):
        note += " *: run on other data of the same recipe, so that losses differ from those of the runs here."
    return "Learning rates tried", note, header, rows


def _runs_table(results: dict) -> Table:
    header = ["arm", "seed", "status", "steps", "minutes", "ms a step", "skipped steps", "error"]
    rows = []
    for r in results["runs"]:
        figures = ["–"] * 4
        if r["status"] == "finished":
            milliseconds = r["step_seconds"] and 1000 * r["step_seconds"]
            figures = [f"{r['steps']:,}", f"{r['seconds'] / 60:.1f}", number(milliseconds), str(r["skipped_steps"])]
        rows.append([r["arm"], str(r["seed"]), r["status"], *figures, r["error"]])
    return "Runs", "", header, rows


def number(value: float | None) -> str:
    """Return a number as it is read, a dash for none."""
    if value is None:
        return "–"
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.3g}"


def bounded(value: float | None, is_bound: bool) -> str:
    """Return a number, with ≥ where it is a lower bound."""
    return f"≥ {number(value)}" if is_bound and value is not None else number(value)


def interval(low: float | None, high: float | None, seeds: int) -> str:
    """Return the range over seeds, a dash where there is one seed."""
    return "–" if low is None or seeds < 2 else f"{number(low)} to {number(high)}"


def signed(value: float) -> str:
    """Return a difference of shares as it is read, with its sign."""
    return f"{value:+.3f}"


def signed_interval(low: float | None, high: float | None, count: int) -> str:
    """Return the range of a difference, a dash where it is of one seed or pair."""
    return "–" if low is None or high is None or count < 2 else f"{signed(low)} to {signed(high)}"
