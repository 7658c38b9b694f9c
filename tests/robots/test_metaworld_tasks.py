"""The table of Meta-World's tasks."""

import pytest

from plait.common.errors import ConfigError
from plait.robots.metaworld_tasks import DIFFICULTY, EASY, SENTENCES, check_task, difficulty_of, tasks_of


def test_every_task_is_in_one_group():
    grouped = [task for tasks in DIFFICULTY.values() for task in tasks]
    assert len(SENTENCES) == 50 and sorted(grouped) == sorted(SENTENCES)
    assert {name: len(tasks) for name, tasks in DIFFICULTY.items()} == {
        "easy": 28, "medium": 11, "hard": 6, "very hard": 5,
    }  # fmt: skip
    assert difficulty_of("soccer-v3") == "medium"


def test_tasks_are_those_of_meta_world():
    module = pytest.importorskip("metaworld.env_dict", reason="Meta-World is not installed")
    assert set(SENTENCES) == set(module.ENV_CLS_MAP)


def test_the_quickstart_s_tasks_are_easy_and_can_be_told_apart():
    assert len(EASY) == 10 and {*EASY} <= {*DIFFICULTY["easy"]}
    assert len({SENTENCES[task] for task in EASY}) == 10


def test_tasks_are_named_one_by_one_and_in_groups():
    assert tasks_of(["quickstart", "door-open-v3", "reach-v3"]) == (*EASY, "reach-v3")
    assert tasks_of(["very hard"]) == DIFFICULTY["very hard"] and len(tasks_of(["all"])) == 50


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match=r"robot\.task: unknown name 'drawer-opne-v3'.*did you mean 'drawer-open-v3'"):
        check_task("drawer-opne-v3")
    with pytest.raises(ConfigError, match="did you mean 'very hard'"):
        tasks_of(["very hrad"])
    with pytest.raises(ConfigError, match=r"prepare\.episodes\.tasks"):
        tasks_of([])
