"""The command line: prepare, train, evaluate, generate, report, export, inspect, compare, quickstart. It parses, and
calls."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator

from plait.common.errors import ConfigError, Held, PlaitError, ResourceError, printable
from plait.common.launch import STOPPED, launch
from plait.common.malloc import keep_freed_memory
from plait.config.bounds import Bounds
from plait.run import commands
from plait.run.arguments import Parser, read_number, real, split, whole
from plait.run.options import export_arguments, generate_arguments, serve_arguments

DESCRIPTION = """Mixture-of-Transformers: text, images and speech, each with its own parameters,
woven by one global attention. One YAML file describes a run; the commands are its steps, each resumable."""

OVERRIDES = """settings:
  Any setting of the config can be given as --dotted.key value, for example
    --train.steps 500 --model.num_layers 8 --model.towers.image.ffn_width 512
  `plait settings` lists them all with their meaning and default."""

EXIT_CODES = """exit codes: 0 done, 1 failed, 2 a setting is wrong, 3 the data is wrong, 4 a checkpoint is wrong,
5 the machine lacks something (device, disk, package), 130 interrupted (rerun the same command to resume)."""

TRAINING = ("quickstart", "prepare", "train", "compare")
"""Commands that train: all others wait for one small product after another, and gain from threads that stay awake."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in TRAINING:
        # waiting threads sleep instead of spinning: training shares the cores with the loader, and with other programs
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        keep_freed_memory()
    with _log_shown():
        return _main(arguments)


@contextlib.contextmanager
def _log_shown() -> Iterator[None]:
    """Enter a context in which plait's log is written to stderr, as plain lines."""
    log, handler = logging.getLogger("plait"), logging.StreamHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _main(arguments: list[str]) -> int:
    parser = _parser()
    try:
        words, settings = split(arguments, parser.commands)
        chosen = parser.parse_args(words)
        if not chosen.command:
            parser.print_help()
            return 0
        chosen.overrides = settings
        _check_launch(chosen.command)
        return chosen.run(chosen) or 0
    except KeyboardInterrupt:
        print("\nplait: interrupted; rerun the same command to resume", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PlaitError as error:
        process = launch()
        if process is None or process.rank == 0:
            print(f"plait: {error}", file=sys.stderr)
        elif not isinstance(error, ConfigError | Held) and error.exit_code != STOPPED:  # those concern all ranks
            print(f"plait, rank {process.rank}: {error}", file=sys.stderr)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"plait: memory: {OUT_OF_MEMORY} ({printable(str(error) or type(error).__name__)[:200]})", file=sys.stderr
        )
        return ResourceError.exit_code


OUT_OF_MEMORY = (
    "this needs more memory than the machine or its device has; lower data.batch_tokens, generate.batch_size or the "
    "sizes of the model, and see what a run needs with plait plan"
)


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error is that of numpy, torch on a CPU, or torch on a device for memory that is not there."""
    text = str(error)
    is_torchs = type(error).__name__ == "OutOfMemoryError" or "not enough memory" in text or "allocate memory" in text
    return isinstance(error, MemoryError) or is_torchs


def _check_launch(command: str) -> None:
    """Refuse commands that a launcher started many times: all would write the same files."""
    process = launch()
    if process and command != "train":
        raise ConfigError(
            f"command line: plait {command} runs in one process, only plait train runs under {process.by}"
        )


class _Version(argparse.Action):
    """Prints what a bug report wants, asked for only then: a commit takes a call of git."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **(settings | {"nargs": 0}))

    def __call__(self, parser, namespace, values, option=None):
        import importlib.metadata
        import platform

        import plait
        from plait.common.commit import commit

        of = f" (commit {found})" if (found := commit()) else ""
        torch = importlib.metadata.version("torch")
        print(f"plait {plait.__version__}{of}, Python {platform.python_version()}, torch {torch}")
        parser.exit()


def _parser() -> Parser:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser("plait", description=DESCRIPTION, epilog=EXIT_CODES, formatter_class=form)
    parser.add_argument("--version", action=_Version, help="print version and commit, and those of Python and torch")
    subparsers = parser.add_subparsers(dest="command", metavar="command", title="commands")

    def add(name: str, run, text: str, *, settings: bool, epilog: str = "") -> Parser:
        epilog = "\n\n".join(filter(None, [epilog, OVERRIDES if settings else ""]))
        command = subparsers.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=form)
        command.set_defaults(run=run)
        command.takes_settings = settings
        parser.commands[name] = command
        return command

    quick = add("quickstart", commands.quickstart,
                "the whole path in a small world: data, codecs, training, report",
                settings=True, epilog=QUICKSTART_EXAMPLES)  # fmt: skip
    which = quick.add_mutually_exclusive_group()
    which.add_argument("--setting", default="mixed", metavar="NAME",
                       help="mixed (text and speech as tokens, images by flow; the default), chameleon-speech (all "
                       "three as tokens), transfusion (text as tokens, images by flow), worlds (scenes in three "
                       "dimensions, their images and motions, all by flow) or robot (actions by flow)")  # fmt: skip
    which.add_argument("--config", default="", help="in place of a setting: a shipped config's name, or a YAML file")
    quick.add_argument("--restart", action="store_true", help="delete the run's folder and start from scratch")

    step = add("prepare", commands.prepare,
               "raw media to trained codecs and encoded shards; rerun the same command to resume",
               settings=True, epilog=PREPARE_EXAMPLES)  # fmt: skip
    step.add_argument("config", help="the run's YAML file, or a shipped config's name")
    step.add_argument(
        "--restart", action="store_true", help="delete earlier work and start from scratch, for example after a change"
    )

    step = add("train", commands.train, "train on prepared shards; resumes from the newest checkpoint", settings=True,
               epilog=TRAIN_EXAMPLES)  # fmt: skip
    step.add_argument("config", help="the run's YAML file, or a shipped config's name")

    step = add("evaluate", commands.evaluate,
               "measure a trained run: losses by task and split, captions, images and speech; several side by side",
               settings=True, epilog=EVALUATE_EXAMPLES)  # fmt: skip
    step.add_argument("run_folders", metavar="run", nargs="+", help="the run's folder; several are compared")
    step.add_argument("--paired", action="store_true",
                      help="how far the others are from the first run, over the same documents")  # fmt: skip

    step = add("generate", commands.generate, "generate text, images and speech from a trained run", settings=False,
               epilog=GENERATE_EXAMPLES)  # fmt: skip
    generate_arguments(step)

    step = add("rollout", commands.rollout,
               "let a trained model act in the environments of its data: how often it succeeds, live or as films",
               settings=False, epilog=ROLLOUT_EXAMPLES)  # fmt: skip
    step.add_argument("run_folder", metavar="run", help="the run's folder")
    step.add_argument("--task", type=_listed, default=[], metavar="A,B", help="only these tasks (default: all)")
    step.add_argument("--episodes", type=whole(at_least=1), default=1, help="unseen starts of each task (default: 1)")
    step.add_argument("--seed", type=whole(at_least=0), default=0, help="number of the first start (default: 0)")
    step.add_argument("--render", action="store_true", help="show them live, on a page of this machine")
    step.add_argument("--port", type=whole(at_least=0, at_most=65535), default=0,
                      help="of that page (default: a free one)")  # fmt: skip
    step.add_argument("--videos", default="", metavar="FOLDER", help="also write a film of each episode (MP4)")
    step.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")

    step = add("serve", commands.serve,
               "serve a model to programs, by OpenAI's endpoints, and to people, by a page at /",
               settings=False, epilog=SERVE_EXAMPLES)  # fmt: skip
    serve_arguments(step, several=False)
    step = add("playground", commands.playground,
               "try models in a browser: a page on this machine, for one model or two",
               settings=False, epilog=PLAYGROUND_EXAMPLES)  # fmt: skip
    serve_arguments(step, several=True)

    step = add("upcycle", commands.upcycle,
               "a language model as a text tower: weights, tokenizer, and a config to train other towers beside it",
               settings=False, epilog=UPCYCLE_EXAMPLES)  # fmt: skip
    step.add_argument("--from", dest="source", required=True, metavar="MODEL",
                      help="folder, GGUF file or name on the Hugging Face Hub: Llama, SmolLM2, SmolLM3, Mistral, "
                      "Qwen2, Qwen2.5 or Qwen3")  # fmt: skip
    step.add_argument("--out", required=True, help="folder to write")
    step.add_argument("--towers", type=_listed, default=["text"], metavar="text,image",
                      help="towers of the config to train with: text, image, speech (default: text)")  # fmt: skip

    step = add("report", commands.report, "write the run's report.html", settings=False)
    step.add_argument("run_folder", metavar="run", help="the run's folder")

    step = add("export", commands.export, "write a checkpoint as a saved model: weights, codecs, settings and a card",
               settings=False, epilog=EXPORT_EXAMPLES)  # fmt: skip
    export_arguments(step)

    step = add(
        "inspect", commands.inspect, "show decoded documents, a packed batch and its attention mask", settings=True
    )
    step.add_argument("config", help="the run's YAML file or folder")
    step.add_argument("--split", default="train", help="split to read (default: train)")
    step.add_argument("--documents", type=whole(at_least=0), default=3, help="documents to show (default: 3)")
    step.add_argument("--mask", default="", metavar="FILE.png", help="also draw the batch's mask and towers")

    step = add("compare", commands.compare,
               "train the models of a study on the same batches, and match them step for step",
               settings=True, epilog=COMPARE_EXAMPLES)  # fmt: skip
    step.add_argument("study", nargs="?", default="", help="a study's YAML file, or a shipped study's name")
    step.add_argument("--arms", type=_listed, default=[], metavar="A,B", help="only these arms (default: all)")
    step.add_argument("--seeds", type=_numbers, default=[], metavar="0,1", help="only these seeds (default: all)")
    step.add_argument("--out", default="", help="folder of data, runs and results (default: the study's); with "
                      "--from-logs of the page, its figures and results.json (default: none are written)")  # fmt: skip
    what = step.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="train nothing; check and show sizes, FLOPs and steps")
    step.add_argument("--rates", default="", metavar="FOLDER",
                      help="reuse the learning-rate sweep that --keep saved in FOLDER; later calls too")  # fmt: skip
    what.add_argument("--analyse", action="store_true",
                      help="train nothing; analyse finished models: activations, attention, gradients")  # fmt: skip
    what.add_argument(
        "--evaluate",
        action="store_true",
        help="train nothing; evaluate the captions, images and speech of finished models",
    )
    what.add_argument("--keep", default="", metavar="FOLDER",
                      help="train nothing; save finished runs in FOLDER for --rates and --from-logs")  # fmt: skip
    step.add_argument("--from-logs", nargs="+", default=[], metavar="LOG.jsonl",
                      help="in place of a study: match logs of any trainer with the first one")  # fmt: skip
    step.add_argument(
        "--warmup",
        type=whole(at_least=0),
        default=0,
        help="ignore the first N steps of each log when matching (default: 0)",
    )

    step = add("plan", commands.plan,
               "sizes, FLOPs, memory, messages and time of a run on some GPUs, and the layout to take; "
               "needs no GPU", settings=True, epilog=PLAN_EXAMPLES)  # fmt: skip
    _plan_arguments(step)

    add("settings", commands.settings, "list every setting of a config, with its meaning and default", settings=False)
    step = add("completion", commands.completion, "print what makes a shell complete commands, options and settings",
               settings=False, epilog=COMPLETION_EXAMPLES)  # fmt: skip
    step.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="the shell that is to complete")
    step.set_defaults(parser=parser)
    return parser


QUICKSTART_EXAMPLES = """examples:
  plait quickstart                           (into runs/quickstart; draws, speaks and captions)
  plait quickstart --setting transfusion     (into runs/quickstart-transfusion)
  plait quickstart --setting worlds          (real furniture in three dimensions, standing and moving)
  plait quickstart --setting robot           (a robot that opens drawers, doors and windows as it is told)
  plait quickstart --out runs/longer --train.minutes 60"""

PREPARE_EXAMPLES = """examples:
  plait prepare my.yaml --prepare.source photos/manifest.jsonl
  plait prepare my.yaml --prepare.source "tars/part-*.tar"             (WebDataset)
  plait prepare my.yaml --prepare.source "[a.parquet, s3://bucket/b.jsonl]" --prepare.columns "{caption: text}"
  plait prepare my.yaml --prepare.source lerobot:datasets/pusht        (a LeRobotDataset v3)

Broken rows are left out and listed with their reasons. docs/data.md: every form of input, limits, mixing, resuming."""

TRAIN_EXAMPLES = """examples:
  plait train configs/quickstart.yaml --train.steps 2000
  torchrun --nproc-per-node 8 -m plait train my.yaml                        (one machine, 8 GPUs)
  srun python -m plait train my.yaml --parallel.replicate 4                 (a task for each GPU)
the section `parallel` of the config says how ranks share the work (docs/parallel.md)"""

GENERATE_EXAMPLES = """examples:
  plait generate runs/quickstart --text "a teapot on a blue background" --output image --count 4
  plait generate runs/quickstart --image teapot.png --output text
  plait generate runs/quickstart --text "a teapot on a blue background" --output speech
  plait generate runs/robot --part front=now.png --part rear=back.png --output text   (modalities of your own)
  plait generate runs/worlds --text "a large red chair" --output scene3d --also ply,xml     (MeshLab, MuJoCo)
  plait generate runs/worlds --text "a red chair falls to the floor" --output scene3d,motion --also gif
  plait generate runs/quickstart --prompts geneval.jsonl --output image --count 4 --out geneval
  plait generate runs/quickstart                     (free: the model chooses the modalities itself)
  plait generate runs/chat --chat "What is the capital of France?"     (prints the answer alone)
  plait generate runs/chat --chat "What is it?" --image fox.png
  plait generate runs/chat --chat messages.json
  plait generate runs/chat --chat                    (line by line; an empty line or Ctrl-D ends it)"""


EVALUATE_EXAMPLES = """examples:
  plait evaluate runs/quickstart
  plait evaluate runs/mine --evaluate.captions 1000
  plait evaluate runs/small runs/large --paired     (a table of both, and which differences are more than chance)"""

ROLLOUT_EXAMPLES = """examples:
  plait rollout runs/quickstart-robot --episodes 10
  plait rollout runs/quickstart-robot --task drawer-open-v3,door-open-v3 --render      (a page that shows it live)
  plait rollout runs/quickstart-robot --task faucet-open-v3 --episodes 5 --videos films
  plait rollout runs/driving --task "keep the lane" --videos films

docs/robots.md, docs/driving.md: the tasks, one's own loop (plait.Policy), and what the figures are."""

SERVE_EXAMPLES = """examples:
  plait serve runs/quickstart
  plait serve smollm2 --port 8001 --weights bfloat16 --api-key-file key.txt --host 0.0.0.0

docs/serving.md: endpoints, what they take, clients in Python, JavaScript and curl."""

PLAYGROUND_EXAMPLES = """examples:
  plait playground runs/quickstart
  plait playground runs/before runs/after            (two checkpoints beside one another)"""

UPCYCLE_EXAMPLES = """examples:
  plait upcycle --from HuggingFaceTB/SmolLM2-135M-Instruct --out smollm2
  plait upcycle --from models/Qwen3-0.6B --out qwen3 --towers text,image
  plait upcycle --from SmolLM2-135M-Instruct.Q8_0.gguf --out smollm2

The tokenizer becomes the text codec; its own ids open and end documents."""

EXPORT_EXAMPLES = """examples:
  plait export runs/quickstart
  plait export runs/big --step 20000 --ema --out big-20000
  plait export runs/style --adapter --out style      (what LoRA learned: plait generate MODEL --adapter style)
  plait export runs/robot --to lerobot --out demos   (the episodes that it was trained on, for LeRobot)"""

COMPARE_EXAMPLES = """examples:
  plait compare chameleon --plan
  plait compare chameleon                            (rerun the same command to resume)
  plait compare chameleon --rates docs/study_logs    (with the learning rates of an earlier sweep)
  plait compare chameleon --arms dense,mot --seeds 0 --train.device cuda
  plait compare chameleon --analyse                  (activations, attention and gradients of finished runs)
  plait compare transfusion --evaluate               (evaluate images and captions of finished runs)
  plait compare chameleon --keep docs/study_logs     (save the logs of finished runs)
  plait compare --from-logs dense.jsonl mine.jsonl --warmup 100 --out match     (a table, and a page with figures)"""


COMPLETION_EXAMPLES = """examples:
  plait completion bash > ~/.local/share/bash-completion/completions/plait
  plait completion zsh > ~/.zfunc/_plait          (a folder of $fpath)

needs the package shtab: pip install shtab"""

PLAN_EXAMPLES = """examples:
  plait plan configs/mot_7b.yaml --gpus 256
  plait plan my.yaml --gpus 16 --memory 40 --peak 312 --mix text=0.3,image=0.7 --train.checkpoint_activations full
  plait plan my.yaml --gpus 64 --tokens 4194304 --json > plan.json

What a GPU and its links can do is what you state; the defaults are an H100's data sheet and are printed with the plan.
Memory is what the model's own code keeps for its tensors (docs/scaling.md)."""


def _listed(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[int]:
    return [read_number(word, kind=int) for word in _listed(text)]


def _plan_arguments(step: argparse.ArgumentParser) -> None:
    step.add_argument("config", help="the run's YAML file or folder, or a shipped config's name")
    for name, kind, text in (
        ("gpus", whole(at_least=1), "total number of GPUs (default: 8)"),
        ("memory", real(above=0), "GB of one GPU, 1e9 bytes each (default: 80)"),
        ("node", whole(at_least=1), "GPUs in one machine (default: 8)"),
        (
            "reserve",
            real(at_least=0, below=1),
            "share of the memory to leave free, for libraries and fragments (default: 0.1)",
        ),
        ("peak", real(at_least=0), "TFLOP/s of one GPU (default: an H100 SXM's, by train.precision)"),
        ("mfu", real(above=0), "share of the peak that computing reaches (default: 0.4)"),
        ("node-bandwidth", real(above=0), "GB/s that a GPU sends within its machine (default: 450)"),
        ("bandwidth", real(above=0), "GB/s that a GPU sends to other machines (default: 50)"),
    ):
        step.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    step.add_argument("--tokens", type=whole(at_least=0), default=0, metavar="N",
                      help="tokens in one step (default: the config's, or its batches on each GPU)")  # fmt: skip
    step.add_argument("--mix", type=_weights, default={}, metavar="NAME=SHARE,...",
                      help="shares of tokens by modality in the made-up documents (default: equal)")  # fmt: skip
    step.add_argument("--document-tokens", type=whole(at_least=0), default=0, metavar="N",
                      help="length of the made-up documents (default: the config's longest)")  # fmt: skip
    step.add_argument("--all", action="store_true", help="show every layout, not the best ten")
    step.add_argument("--json", action="store_true", help="print the whole plan as JSON instead")


def _weights(text: str) -> dict[str, float]:
    pairs = [word.partition("=") for word in _listed(text)]
    return {name: read_number(share, kind=float, bounds=Bounds(at_least=0)) for name, _, share in pairs}


if __name__ == "__main__":
    sys.exit(main())
