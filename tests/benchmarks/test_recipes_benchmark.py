"""benchmarks/recipes.py drives real trainers: rows, arms, and a step that is one of training; and the table of them."""

import contextlib
import importlib
import json

import pytest
import torch

recipes, table = (importlib.import_module(name) for name in ("recipes", "table"))

ENDS = ("quickstart_robot-tiny", "d64-t256-2towers-50-50")
TINY = recipes.grid("tiny")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--grid", "tiny", "--device", "cpu", "--turns", "1", "--out", str(folder)]
    assert recipes.main(arguments) == 0
    (path,) = folder.glob("cpu-*.json")
    return json.loads(path.read_text())


def test_every_row_is_there(rows):
    kinds = ["recipe_ratio/forward-backward/{}", "recipe_ratio/dense-again/{}"]
    kinds += [f"{kind}/{{}}/{optimizer}" for kind in ("recipe_ratio/whole", "recipe_ratio/dense-again", "recipe_floor")
              for optimizer in ("adamw", "muon")]  # fmt: skip
    values = {row["name"]: row["value"] for row in rows["rows"]}
    assert set(values) == {kind.format(end) for kind in kinds for end in ENDS}
    assert all(value > 0 for value in values.values())
    assert all(value >= 1 for name, value in values.items() if name.startswith("recipe_floor/"))


def test_the_table_of_recipes(rows):
    text = table.tables(rows, "cpu-9")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in lines] == sorted(ENDS)
    assert all(line.count("(goal ≤ 1.1: ") == 2 and line.count("|") == 6 for line in lines)
    some = [row for row in rows["rows"] if "muon" not in row["name"]]
    assert f"| `{ENDS[1]}` |" in table.tables(rows | {"rows": some}, "cpu-9")


@pytest.mark.parametrize("recipe", TINY, ids=str)
def test_arms_are_one_run_with_more_and_with_one_tower(recipe):
    """The same documents in the same order, so that they differ in the towers alone."""
    with recipes.opened(recipe, "cpu", optimizer="muon") as arms:
        sizes = {name: arm.num_parameters for name, arm in arms.items()}
        assert sizes["dense"] == sizes["dense-again"] < sizes["mot"]
        towers = {name: len(arm.trainer.config.model.towers) for name, arm in arms.items()}
        assert towers["dense"] == 1 < towers["mot"]
        assert len({tuple(b.num_tokens for b in arm._batches) for arm in arms.values()}) == 1
        assert all(arm.trainer.averages for arm in arms.values())


def test_a_step_is_a_step_of_training_and_logs_when_it_should():
    with recipes.opened(TINY[0], "cpu", optimizer="adamw") as arms:
        arm = arms["mot"]
        trainer, log = arm.trainer, arm.trainer.out / "metrics.jsonl"
        before = [p.detach().clone() for p in trainer._trained()]
        arm.step()
        assert not log.read_text() and trainer.state.tokens > 0
        assert any(not torch.equal(a, b) for a, b in zip(before, trainer._trained(), strict=True))
        arm.logged_step()
        (row,) = map(json.loads, log.read_text().splitlines())
        assert row["skipped_steps"] == 0 and any(name.startswith("grad_norm/") for name in row)
        held = [p.detach().clone() for p in trainer._trained()]
        arm.move()
        assert all(map(torch.equal, held, trainer._trained())) and all(p.grad is None for p in trainer._trained())


@pytest.mark.parametrize("name", ["quickstart_worlds", "nothing"])
def test_a_recipe_that_is_not_in_the_grid(name, capsys):
    with contextlib.suppress(SystemExit):
        recipes.main(["--grid", "tiny", "--recipe", name])
    assert f"'{name}' is not in this grid" in capsys.readouterr().err
