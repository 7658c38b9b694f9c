"""The plain network of plait/robots/baseline.py alone: the row that the mixture of `quickstart_robot` is held against.

    python benchmarks/robot_baseline.py --minutes 9 --episodes 100           about 15 minutes on two cores
    python benchmarks/robot_baseline.py --minutes 1 --episodes 20 --documents 2000

It is trained on the documents that `prepare.source: metaworld` makes of the same seed and count, and tried from unseen
starts, told its task and told another one, beside the expert and random actions. The last line is JSON: the share of
successes with Wilson's 95% interval, in all and by task.
"""

import argparse
import json
import time

import torch

from plait.config.run import PrepareConfig
from plait.robots.baseline import trained
from plait.robots.camera import renderer_name
from plait.robots.rollouts import expert_rollouts, random_rollouts, roll_out, success_table
from plait.robots.source import PARTS, MetaworldSource
from plait.robots.trials import MetaworldTrials


def main() -> None:
    """Make the documents, train, try, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="of training")
    parser.add_argument("--episodes", type=int, default=100, help="unseen starts, spread over the tasks")
    parser.add_argument("--documents", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    source = MetaworldSource(PrepareConfig(documents=options.documents, image_size=64), options.seed, parts=PARTS)
    tasks, seeds = source.tasks, range(max(1, -(-options.episodes // len(source.tasks))))
    began = time.monotonic()
    model = trained(source, options.minutes, seed=options.seed, advance=lambda share, text: print(text, flush=True))
    seconds, began = time.monotonic() - began, time.monotonic()
    table = success_table(roll_out(tasks, seeds, model.act))
    told_another = success_table(roll_out(tasks, seeds, model.act, said=MetaworldTrials(source).others()))
    row = {
        "baseline": "cnn + mlp", **table["all"], "told_another_task": told_another["all"],
        "expert": success_table(expert_rollouts(tasks, seeds))["all"],
        "random": success_table(random_rollouts(tasks, seeds))["all"],
        "tasks": {task: table[task]["success"] for task in tasks},
        "parameters": sum(p.numel() for p in model.parameters()), "documents": options.documents, "seed": options.seed,
        "minutes": options.minutes, "renderer": renderer_name(), "threads": torch.get_num_threads(),
        "seconds_of_documents_and_training": round(seconds, 1), "seconds_of_trials": round(time.monotonic() - began, 1),
    }  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
