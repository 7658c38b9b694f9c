"""The 50 tasks of Meta-World (v3): the sentence that says each, how hard it is, and the ten that the quickstart learns.

Sentences and groups are those of LeRobot (huggingface/lerobot, src/lerobot/envs/metaworld_config.json, Apache-2.0), so
that figures by group can be held against published ones.
"""

from collections.abc import Iterable

from plait.common.errors import ConfigError, require, unknown

SENTENCES = {
    "assembly-v3": "Pick up a nut and place it onto a peg",
    "basketball-v3": "Dunk the basketball into the basket",
    "bin-picking-v3": "Grasp the puck from one bin and place it into another bin",
    "box-close-v3": "Grasp the cover and close the box with it",
    "button-press-topdown-v3": "Press a button from the top",
    "button-press-topdown-wall-v3": "Bypass a wall and press a button from the top",
    "button-press-v3": "Press a button",
    "button-press-wall-v3": "Bypass a wall and press a button",
    "coffee-button-v3": "Push a button on the coffee machine",
    "coffee-pull-v3": "Pull a mug from a coffee machine",
    "coffee-push-v3": "Push a mug under a coffee machine",
    "dial-turn-v3": "Rotate a dial 180 degrees",
    "disassemble-v3": "Pick a nut out of a peg",
    "door-close-v3": "Close a door with a revolving joint",
    "door-lock-v3": "Lock the door by rotating the lock clockwise",
    "door-open-v3": "Open a door with a revolving joint",
    "door-unlock-v3": "Unlock the door by rotating the lock counter-clockwise",
    "hand-insert-v3": "Insert the gripper into a hole",
    "drawer-close-v3": "Push and close a drawer",
    "drawer-open-v3": "Open a drawer",
    "faucet-open-v3": "Rotate the faucet counter-clockwise",
    "faucet-close-v3": "Rotate the faucet clockwise",
    "hammer-v3": "Hammer a screw on the wall",
    "handle-press-side-v3": "Press a handle down sideways",
    "handle-press-v3": "Press a handle down",
    "handle-pull-side-v3": "Pull a handle up sideways",
    "handle-pull-v3": "Pull a handle up",
    "lever-pull-v3": "Pull a lever down 90 degrees",
    "peg-insert-side-v3": "Insert a peg sideways",
    "pick-place-wall-v3": "Pick a puck, bypass a wall and place the puck",
    "pick-out-of-hole-v3": "Pick up a puck from a hole",
    "reach-v3": "Reach a goal position",
    "push-back-v3": "Push the puck to a goal",
    "push-v3": "Push the puck to a goal",
    "pick-place-v3": "Pick and place a puck to a goal",
    "plate-slide-v3": "Slide a plate into a cabinet",
    "plate-slide-side-v3": "Slide a plate into a cabinet sideways",
    "plate-slide-back-v3": "Get a plate from the cabinet",
    "plate-slide-back-side-v3": "Get a plate from the cabinet sideways",
    "peg-unplug-side-v3": "Unplug a peg sideways",
    "soccer-v3": "Kick a soccer into the goal",
    "stick-push-v3": "Grasp a stick and push a box using the stick",
    "stick-pull-v3": "Grasp a stick and pull a box with the stick",
    "push-wall-v3": "Bypass a wall and push a puck to a goal",
    "reach-wall-v3": "Bypass a wall and reach a goal",
    "shelf-place-v3": "Pick and place a puck onto a shelf",
    "sweep-into-v3": "Sweep a puck into a hole",
    "sweep-v3": "Sweep a puck off the table",
    "window-open-v3": "Push and open a window",
    "window-close-v3": "Push and close a window",
}
"""What a robot is told, by task. push-v3 and push-back-v3 have one sentence; their scenes differ."""

DIFFICULTY = {
    "easy": (
        "button-press-v3", "button-press-topdown-v3", "button-press-topdown-wall-v3", "button-press-wall-v3",
        "coffee-button-v3", "dial-turn-v3", "door-close-v3", "door-lock-v3", "door-open-v3", "door-unlock-v3",
        "drawer-close-v3", "drawer-open-v3", "faucet-close-v3", "faucet-open-v3", "handle-press-v3",
        "handle-press-side-v3", "handle-pull-v3", "handle-pull-side-v3", "lever-pull-v3", "plate-slide-v3",
        "plate-slide-back-v3", "plate-slide-back-side-v3", "plate-slide-side-v3", "reach-v3", "reach-wall-v3",
        "window-close-v3", "window-open-v3", "peg-unplug-side-v3",
    ),
    "medium": (
        "basketball-v3", "bin-picking-v3", "box-close-v3", "coffee-pull-v3", "coffee-push-v3", "hammer-v3",
        "peg-insert-side-v3", "push-wall-v3", "soccer-v3", "sweep-v3", "sweep-into-v3",
    ),
    "hard": (
        "assembly-v3", "hand-insert-v3", "pick-out-of-hole-v3", "pick-place-v3", "push-v3", "push-back-v3",
    ),
    "very hard": (
        "shelf-place-v3", "disassemble-v3", "stick-pull-v3", "stick-push-v3", "pick-place-wall-v3",
    ),
}  # fmt: skip
"""Tasks by how hard they are."""

EASY = (
    "door-open-v3", "door-close-v3", "drawer-open-v3", "drawer-close-v3", "faucet-open-v3", "faucet-close-v3",
    "window-open-v3", "window-close-v3", "coffee-button-v3", "handle-press-v3",
)  # fmt: skip
"""The ten tasks of the quickstart, chosen by rule from the easy ones. The scripted expert succeeds from each of 10
starts (seeds 0 to 9), with noise and without, and never takes more than 100 steps. Of those tasks these are all that
open or close something, where the sentence counts, and the two others that the expert finishes soonest."""


def check_task(task: str, field: str = "robot.task") -> str:
    """Return the name of a task. Raises ConfigError for one that there is not, and names the nearest."""
    if task not in SENTENCES:
        raise ConfigError(unknown(field, task, SENTENCES))
    return task


def difficulty_of(task: str) -> str:
    """Return how hard a task is."""
    return next(name for name, tasks in DIFFICULTY.items() if task in tasks)


def tasks_of(names: Iterable[str], field: str = "prepare.episodes.tasks") -> tuple[str, ...]:
    """Return tasks by name, by group ("easy", "very hard"), as "quickstart" (`EASY`) or as "all"; each once, in order.

    Raises ConfigError for a name that there is not, and where none is named.
    """
    groups = {"quickstart": EASY, "all": tuple(SENTENCES), **DIFFICULTY}
    tasks = [task for name in names for task in groups.get(name, (name,))]
    for task in tasks:
        if task not in SENTENCES:
            raise ConfigError(unknown(field, task, [*SENTENCES, *groups]))
    require(bool(tasks), field, [], "at least one name, such as quickstart or all")
    return tuple(dict.fromkeys(tasks))
