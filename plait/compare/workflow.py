"""`plait compare`: plan, run and write down a study, as far as it goes."""

from collections.abc import Callable, Sequence
from pathlib import Path

from plait.common.errors import require
from plait.common.files import write_json
from plait.common.progress import Progress
from plait.compare.analysis import read_analyses
from plait.compare.analysis_charts import analysis_charts
from plait.compare.kept_rows import keep
from plait.compare.planned_runs import ArmPlan
from plait.compare.records import read_records, read_written_records
from plait.compare.results import gather, write_results
from plait.compare.runner import StudyFailed, StudyRun
from plait.compare.study import Study
from plait.compare.study_charts import charts
from plait.compare.study_page import write_study_page
from plait.compare.tables import Table, number
from plait.train.trainer import TrainingStopped
from plait.web.chart_files import draw_figures


def compare(study: Study, progress: Progress, *, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> Path:
    """Run what is not done of a study, for some arms and seeds or all, and write results and page.

    Returns the page. Raises StudyFailed at the end where runs failed, TrainingStopped where it was asked to stop.
    """
    run = _open(study, progress, arms, seeds)
    try:
        run.run()
    except TrainingStopped:
        write_down(run)
        raise
    page = write_down(run)
    if run.failures:
        more = f", and {len(run.failures) - 1} more" if len(run.failures) > 1 else ""
        raise StudyFailed(
            f"study: {run.failures[0]}{more}; the other runs are done and their results are in {str(page.parent)!r}, "
            "rerun the same command to retry them"
        )
    return page


def plan_study(study: Study, progress: Progress, *, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> Table:
    """Check a study and return what its arms cost as a table, with nothing trained."""
    run = _open(study, progress, arms, seeds)
    return plan_table(run, run.make_plan(arms))


def _open(study: Study, progress: Progress, arms: Sequence[str], seeds: Sequence[int]) -> StudyRun:
    names = study.chosen_arms(arms)
    known = sorted({s for name in names for s in study.config.arms[name].seeds})
    for seed in seeds:
        require(seed in known, "--seeds", seed, f"among the seeds of these arms ({', '.join(map(str, known))})")
    return StudyRun(study, progress, arms=names, seeds=list(seeds))


def examine_study(study: Study, progress: Progress, examine: Callable[[StudyRun], None], *, arms: Sequence[str] = (),
                  seeds: Sequence[int] = ()) -> Path:  # fmt: skip
    """Examine the finished runs of a study (`analyse`, `evaluate_runs`), and write results and page anew.

    Returns the page. Trains nothing, and what was examined before is not examined again.
    """
    run = _open(study, progress, arms, seeds)
    run.make_plan()
    examine(run)
    return write_down(run)


def keep_study(study: Study, progress: Progress, folder: str | Path) -> Path:
    """Write the logs of a study's runs that are over, in their compact form, below ``folder``; returns their place.

    Reads the study's runs and results as they are; raises DataError where there are no results.
    """
    run = _open(study, progress, [], [])
    return keep(study, read_written_records(run), read_analyses(run), Path(folder))


def write_down(run: StudyRun) -> Path:
    """Write results.json, results.md, analysis.json, the figures and study.html of all that is done.

    Returns the page.
    """
    matched, analyses = gather(run.study, read_records(run)), read_analyses(run)
    folder = run.study.results
    write_results(matched, folder)
    drawn = charts(matched)
    if any(analyses.values()):
        write_json(folder / "analysis.json", analyses)
        drawn += analysis_charts(matched, analyses)
    draw_figures(drawn, folder)
    return write_study_page(matched, drawn, folder / "study.html")


def plan_table(run: StudyRun, plan: dict[str, ArmPlan]) -> Table:
    """Return the arms with their parameters and operations."""
    study = run.study
    header = ["arm", "parameters", "active", "FLOPs per step", "by torch", "ratio", "equal", "steps", "total FLOPs"]
    rows = []
    for name, p in plan.items():
        arm = study.config.arms[name]
        other = plan.get(arm.against)
        ratio = number(p.flops.formula / other.flops.formula) if other else "–"
        equal = "–" if arm.against == name else "yes" if arm.equal_flops else "no"
        rows.append([name, f"{p.parameters / 1e6:.2f} M", f"{p.active_parameters / 1e6:.2f} M",
                     f"{p.flops.formula:.3g}", f"{p.flops.counted:.3g}", ratio, equal, f"{p.steps:,}",
                     f"{p.flops.formula * p.steps:.3g}"])  # fmt: skip
    runs = sum(len(study.config.arms[name].seeds) for name in plan)
    total = sum(p.flops.formula * p.steps * len(study.config.arms[name].seeds) for name, p in plan.items())
    others = {name: _other_rates(run, name) for name in plan if study.config.arms[name].tune}
    total += sum(plan[name].flops.formula * plan[name].steps * count for name, count in others.items())
    note = f"{runs} runs and {sum(others.values())} with other learning rates, {total:.3g} FLOPs in all"
    return f"Plan of {study.config.name}", note, header, rows


def _other_rates(run: StudyRun, arm: str) -> int:
    """Return how many trials of an arm are runs beside those of its seeds: the best one is a run of the study."""
    to_try = len(run.rates_to_try(arm))
    return to_try - 1 if to_try == len(run.study.config.tuning.learning_rates) else to_try
