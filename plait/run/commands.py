"""What each command of `plait.cli` does with its parsed arguments. Heavy imports stand inside: --help needs none."""

import functools
import shlex
from collections.abc import Sequence
from pathlib import Path

from plait.common.errors import ConfigError, require
from plait.common.launch import is_first


def _config(name: str, overrides: list[str]):
    from plait.config.file import load, load_kept
    from plait.config.shipped import config_path

    path = config_path(name)
    return load_kept(name, overrides) if path.parent == Path(name) else load(path, overrides)


def prepare(chosen) -> None:
    from plait.common.progress import Progress
    from plait.run.steps import prepare_step

    figures = prepare_step(_config(chosen.config, chosen.overrides), Progress(), restart=chosen.restart)
    _print_figures("prepared", figures)


def train(chosen) -> None:
    from plait.common.progress import Progress
    from plait.run.steps import summarise, train_step

    config = _config(chosen.config, chosen.overrides)
    train_step(config, Progress())
    if is_first():
        summarise(config)
        print(f"trained: {config.out}")


def evaluate(chosen) -> None:
    from plait.common.progress import Progress
    from plait.evaluate.suite import FILE
    from plait.run.load import run_config
    from plait.run.steps import evaluate_step, summarise

    runs = list(dict.fromkeys(chosen.run_folders))
    require(not chosen.paired or len(runs) > 1, "--paired", True, "left out with one run: name another one beside it")
    configs = {run: run_config(run, chosen.overrides) for run in runs}
    found = {}
    for run, config in configs.items():
        figures = evaluate_step(config, Progress())
        found[run] = summarise(config)
    from plait.run.leaderboard import about, leaderboard, losses, paired, scoreboard

    modalities = list(dict.fromkeys(name for config in configs.values() for name in config.model.modalities))
    if len(runs) == 1:
        for table in (scoreboard(figures, modalities, config.evaluate.aims), losses(figures, modalities)):
            if table[-1]:
                _print_table(*table)
        print(about(runs[0], found[runs[0]]))
        print(f"all figures: {Path(config.out) / FILE}; plait report {runs[0]} shows them with examples")
        return
    _print_table(*leaderboard(found, modalities))
    for other in runs[1:] if chosen.paired else []:
        _print_table(*paired(runs[0], other, modalities))


def report(chosen) -> None:
    from plait.common.progress import Progress
    from plait.run.load import run_config
    from plait.run.steps import report_step

    print(f"report: {report_step(run_config(chosen.run_folder), Progress())}")


def compare(chosen) -> None:
    from plait.common.files import read_json
    from plait.common.progress import Progress
    from plait.compare import workflow
    from plait.compare.study import load_study
    from plait.compare.tables import matching_table
    from plait.config.shipped import config_path, study_path

    _check_options(chosen)
    if chosen.from_logs:
        return _compare_logs(chosen)
    study = chosen.study and load_study(
        study_path(chosen.study), find_base=config_path, out=chosen.out, overrides=chosen.overrides
    )
    some = {"arms": chosen.arms, "seeds": chosen.seeds}
    if study and chosen.rates:
        from plait.compare.kept_rows import take_trials

        taken = take_trials(study, Path(chosen.rates))
        print(f"learning rates: trials of {', '.join(taken)} are taken from {chosen.rates}")
    if chosen.keep:
        print(f"kept: {workflow.keep_study(study, Progress(), chosen.keep)}")
    elif chosen.plan:
        _print_table(*workflow.plan_study(study, Progress(), **some))
    elif chosen.analyse or chosen.evaluate:
        from plait.compare.analysis import analyse
        from plait.compare.run_scores import evaluate_runs
        from plait.run.steps import evaluate_step

        examine = analyse if chosen.analyse else functools.partial(evaluate_runs, evaluate=evaluate_step)
        print(f"study: {workflow.examine_study(study, Progress(), examine, **some)}")
    else:
        page = workflow.compare(study, Progress(), **some)
        _print_table(*matching_table(read_json(page.with_name("results.json"), "results")))
        print(f"study: {page}")


def _check_options(chosen) -> None:
    """Raise a ConfigError for options of `plait compare` that would be without effect."""
    if not (chosen.study or chosen.from_logs):
        raise ConfigError("command line: plait compare needs a study or --from-logs")
    options = {"a study": chosen.study, "--keep": chosen.keep, "--rates": chosen.rates, "--plan": chosen.plan,
               "--analyse": chosen.analyse, "--evaluate": chosen.evaluate, "--arms": chosen.arms,
               "--seeds": chosen.seeds, "--out": chosen.out, "--warmup": chosen.warmup,
               "settings": chosen.overrides}  # fmt: skip
    taken: Sequence[str]
    if chosen.from_logs:
        what, taken = "--from-logs stands in place of a study", ("--out", "--warmup")
    elif chosen.keep:
        what, taken = "--keep keeps all finished runs", ("a study", "--keep", "--out", "settings")
    else:
        what, taken = "--warmup is for --from-logs", [name for name in options if name != "--warmup"]
    for name in (name for name, value in options.items() if value and name not in taken):
        raise ConfigError(f"command line: {what}, leave out {name}")


def _compare_logs(chosen) -> None:
    from plait.compare.logs import match_logs, write_match
    from plait.compare.tables import tables

    matched = match_logs(chosen.from_logs, warmup=chosen.warmup)
    page = write_match(matched, Path(chosen.out)) if chosen.out else None
    for table in tables(matched.results):
        _print_table(*table)
    if page:
        print(f"page: {page}")


def quickstart(chosen) -> None:
    from plait.common.progress import Progress
    from plait.config.shipped import QUICKSTARTS, quickstart_config
    from plait.run.next_steps import next_steps
    from plait.run.steps import whole_run

    config = _config(chosen.config or quickstart_config(chosen.setting), chosen.overrides)
    path = whole_run(config, Progress(), restart=chosen.restart)
    is_default = not chosen.config and chosen.setting == next(iter(QUICKSTARTS))
    named = ["--config", chosen.config] if chosen.config else ["--setting", chosen.setting]
    command = shlex.join(["quickstart", *([] if is_default else named)])
    print(f"report: {path}\n\nwhat to do next:", *next_steps(config, path, command), sep="\n")


def generate(chosen) -> None:
    from plait.common.hub import found, is_name
    from plait.config.shipped import SAMPLING, grids_from, sampling_from
    from plait.generate.pipeline import check_formats
    from plait.run.load import load
    from plait.run.steps import save_generated

    if chosen.chat is not None and chosen.count != 1:
        raise ConfigError("command line: --chat gives one answer, leave out --count")
    if chosen.also:
        require(bool(chosen.output), "--also", _formats(chosen.also), "given with --output")
        require(not chosen.prompts, "--also", _formats(chosen.also), "left out with --prompts")
    prompts = _prompts_of(chosen) if chosen.prompts else []
    folder = found(chosen.run_folder, "model")
    pipeline = load(folder, device=chosen.device, weights=chosen.weights, adapter=chosen.adapter)
    options = {name: getattr(chosen, name) for name in SAMPLING if getattr(chosen, name) is not None}
    sampling = sampling_from(pipeline.config.sampling, pipeline.model.config, options, _option)
    outputs = chosen.output.split(",") if chosen.output else []
    if chosen.also:
        check_formats([pipeline.codecs[name] for name in outputs if name in pipeline.codecs], chosen.also, "--also")
    longest = {} if chosen.max_tokens is None else dict.fromkeys(pipeline.codecs, chosen.max_tokens)
    grids = grids_from(chosen.grid, chosen.output, pipeline.model.config)
    settings = {"seed": chosen.seed, "sampling": sampling, "max_tokens": longest, "grids": grids}
    out = chosen.out or ("generated" if is_name(chosen.run_folder) else f"{chosen.run_folder}/generated")
    parts = getattr(chosen, "prompt", None) or []
    if prompts:
        _answer_file(pipeline, chosen, prompts, settings)
        return
    if chosen.chat is not None:
        from plait.run.chat import chat

        host = pipeline.model.config.layout.host
        show = functools.partial(_show_answer, out=out, also=chosen.also)
        chat(pipeline, chosen.chat, parts, chosen.output or host, show, **settings)
        return
    media = pipeline.read(parts)
    samples = pipeline.generate_from_media([media] * chosen.count, [outputs or None] * chosen.count, **settings)
    save_generated(samples, out, also=chosen.also)


def _prompts_of(chosen) -> list:
    """Return the prompts of a file, before a model is loaded for them."""
    from plait.run.prompt_files import read_prompts

    alone = not getattr(chosen, "prompt", None) and chosen.chat is None
    require(alone, "--prompts", chosen.prompts, "given without other prompts")
    require(bool(chosen.out and chosen.output), "--prompts", chosen.prompts, "given with --out and --output")
    return read_prompts(chosen.prompts)


def _answer_file(pipeline, chosen, prompts, settings) -> None:
    import dataclasses

    from plait.common.progress import Progress
    from plait.run.prompt_files import answer

    sampling = {name: dataclasses.asdict(s) for name, s in settings["sampling"].items()}
    key = {"model": chosen.run_folder, "adapter": chosen.adapter, "output": chosen.output, "count": chosen.count,
           **settings, "sampling": sampling}  # fmt: skip
    before = answer(pipeline, prompts, chosen.output, count=chosen.count, out=Path(chosen.out), key=key,
                    progress=Progress(), **settings)  # fmt: skip
    print(f"{len(prompts)} prompts: {chosen.out}" + (f" ({before} were there)" if before else ""))


def _formats(suffixes: Sequence[str]) -> str:
    return ",".join(suffix.lstrip(".") for suffix in suffixes)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _show_answer(sample, out: str, also: Sequence[str] = ()) -> None:
    """Print an answer of text alone; one with media is saved, and its files are named."""
    from plait.run.steps import save_generated

    if all(sample.codecs[name].kind == "text" for name, _ in sample.output):
        print(sample.text, flush=True)
    else:
        save_generated([sample], out, also=also)


def serve(chosen, *, browse: bool = False) -> None:
    from plait.common import hub
    from plait.model.adapters import attach, check_adapter
    from plait.run.load import check_loadable, load
    from plait.serve.server import read_key, serve
    from plait.serve.service import Limits

    folders = {name: hub.found(name, "model") for name in chosen.models}
    adapters = {
        name: hub.found(place, "--adapter", hub.ADAPTER)
        for name, place in _named(chosen.adapter, chosen.models).items()
    }

    def loading(folder: Path):
        def now():
            pipeline = load(folder, device=chosen.device, weights=chosen.weights)
            if adapters:
                attach(pipeline.model, adapters, "--adapter")
            return pipeline

        return now

    for folder in folders.values():
        check_loadable(folder)
    for folder in adapters.values():
        check_adapter(folder, "--adapter")
    models = {Path(name).resolve().name: loading(folder) for name, folder in folders.items()}
    if len(models) < len(folders):
        models = {name: loading(folder) for name, folder in folders.items()}
    limits = Limits(max_queue=chosen.max_queue, timeout=chosen.timeout)
    serve(models, host=chosen.host, port=chosen.port, key=read_key(chosen.api_key_file), limits=limits,
          run=folders[chosen.models[0]], browse=browse)  # fmt: skip


def _named(options: list[str], models: list[str]) -> dict[str, str]:
    """Return the folder of each adapter by its name, of options NAME=FOLDER; raises ConfigError."""
    pairs = [option.partition("=") for option in options]
    taken = {Path(folder).resolve().name for folder in models}
    for name, _, folder in pairs:
        require(bool(name and folder), "--adapter", name or folder, "of the form NAME=FOLDER")
        require(name not in taken, "--adapter", name, "a name that nothing else here has")
        taken.add(name)
    require(not pairs or len(models) == 1, "--adapter", options, "given with one model, the one that it changes")
    return {name: folder for name, _, folder in pairs}


def playground(chosen) -> None:
    serve(chosen, browse=True)


def upcycle(chosen) -> None:
    from plait.common.progress import Progress
    from plait.upcycle.write import upcycle as write

    path, towers = write(chosen.source, chosen.out, chosen.towers, Progress()), chosen.towers
    print(f"model: {path}\n\nwhat to do next:")
    print(f"  plait generate {path} --text 'Once upon a time' --output text")
    print(f"  plait generate {path} --chat 'What is the capital of France?'    (a model that was taught to chat)")
    if len(towers) > 1:
        print(f"  plait prepare {path}/train.yaml && plait train {path}/train.yaml    (trains {', '.join(towers[1:])})")


def export(chosen) -> None:
    from plait.common.hub import check_publishable, published
    from plait.common.progress import Progress
    from plait.config.file import load_kept
    from plait.run.saved import add_codecs
    from plait.train.export import export as export_run

    if chosen.to == "lerobot":
        _export_episodes(chosen)
        return
    if chosen.push:
        check_publishable(chosen.push, "--push")
    require(bool(chosen.push) or not chosen.private, "--private", True, "left out without --push")

    def add(folder: Path) -> None:
        if not chosen.weights_only:
            name = chosen.push or Path(chosen.out).name or chosen.run_folder
            add_codecs(load_kept(chosen.run_folder), folder, name, measured=chosen.step is None)

    path = export_run(chosen.run_folder, chosen.out, step=chosen.step, averages=chosen.ema, merge=chosen.merge,
                      adapter=chosen.adapter, add=add, file_gb=chosen.file_gb, progress=Progress())  # fmt: skip
    print(f"exported: {path}")
    if chosen.push:
        print(f"published: {published(path, chosen.push, private=chosen.private, where='--push')}")


def _export_episodes(chosen) -> None:
    from plait.config.file import load_kept
    from plait.prepare.lerobot_write import export_episodes

    of_weights = {"--step": chosen.step is not None, "--ema": chosen.ema, "--merge": chosen.merge,
                  "--adapter": chosen.adapter, "--weights-only": chosen.weights_only, "--push": chosen.push,
                  "--private": chosen.private}  # fmt: skip
    for name in (name for name, value in of_weights.items() if value):
        raise ConfigError(f"command line: --to lerobot writes no weights, leave out {name}")
    folder = chosen.out or f"{chosen.run_folder}/exported/lerobot"
    print(f"exported: {export_episodes(load_kept(chosen.run_folder), folder)}")


def rollout(chosen) -> None:
    from plait.run.rollout import rollout as act

    port = chosen.port if chosen.render or chosen.port else None
    print(act(chosen.run_folder, tasks=chosen.task, episodes=chosen.episodes, seed=chosen.seed, videos=chosen.videos,
              port=port, device=chosen.device))  # fmt: skip


def inspect(chosen) -> None:
    from plait.run.inspect import inspect_run

    inspect_run(chosen)


def plan(chosen) -> int:
    import dataclasses
    import json

    from rich.console import Console

    from plait.common.errors import ResourceError
    from plait.common.progress import Progress
    from plait.plan.estimate import Machines, make_plan
    from plait.plan.show import as_json, show

    names = [field.name for field in dataclasses.fields(Machines)]
    machines = Machines(**{name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None})
    run_plan = make_plan(_config(chosen.config, chosen.overrides), machines, tokens=chosen.tokens, mix=chosen.mix,
                         document_tokens=chosen.document_tokens, progress=Progress())  # fmt: skip
    if chosen.json:
        print(json.dumps(as_json(run_plan), indent=1))
    else:
        console = Console()
        if not console.is_terminal:
            console.width = 150  # a file has no edge
        show(run_plan, console, everything=chosen.all)
    return 0 if run_plan.best else ResourceError.exit_code


def settings(chosen) -> None:
    from plait.config.shipped import describe_settings

    print(describe_settings())


def completion(chosen) -> None:
    from plait.run.completion import script

    print(script(chosen.parser, chosen.parser.commands, chosen.shell))


def _print_figures(title: str, figures: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title=title, box=None, title_justify="left")
    for name, value in figures.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    Console().print(table)


def _print_table(title: str, note: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # names that users bring are no markup

    table = Table(title=Text(title), caption=Text(note), box=None, title_justify="left", caption_justify="left")
    for name in header:
        table.add_column(Text(name), overflow="fold")  # nothing that is read is cut off
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file has no edge
    console.print(table)
