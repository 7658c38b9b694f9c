"""Data at scale: memory that does not grow with the number of documents, and mixtures whose sources end."""

import importlib
import itertools
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_data import run_config, scene_like, write_folder
from helpers.loading import same, take
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.common.errors import ConfigError
from plait.common.progress import QuietProgress
from plait.config.file import from_dict, to_dict
from plait.config.run import RunConfig, SourceConfig
from plait.data import shards
from plait.data.loader import Loader, validation_batches
from plait.data.mixing import MixedOrder
from plait.data.shards import ShardSource
from plait.train.trainer import Trainer

data = importlib.import_module("data")


@pytest.mark.slow
def test_ten_million_documents_open_in_a_second_and_take_no_memory(tmp_path):
    found = {}
    for size in data.SIZES["cpu"]:
        data.build_index(tmp_path / str(size), size)
        found[size] = data.in_fresh_process(tmp_path / str(size))
    small, large = found.values()
    assert large["open"] < 1.0
    assert large["memory"] - small["memory"] < 16  # MB: the list of 4,883 shards, and nothing for each document
    assert large["plan"] > 5 * large["read"]


def test_the_benchmark_writes_every_row(tmp_path, monkeypatch):
    monkeypatch.setitem(data.SIZES, "tiny", (2048, 4096))
    assert data.main(["--grid", "tiny", "--out", str(tmp_path), "--device", "cpu"]) == 0
    (path,) = tmp_path.glob("*.json")
    assert {row["unit"] for row in json.loads(path.read_text())["rows"]} == {"s", "documents/s", "MB"}


def test_opening_and_planning_read_no_document(tmp_path):
    """Not even the shards have to be there."""
    folder = write_folder(tmp_path, {"train": [scene_like(i) for i in range(300)]}, per_shard=32)
    for shard in folder.glob("shards/*"):
        shard.unlink()
    loader = Loader(run_config(folder))
    assert len(loader._plan([0]).bins) > 100


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 3)
    folder = write_folder(tmp_path, {"train": [scene_like(i) for i in range(64)]}, per_shard=2)
    source = ShardSource(folder, "train")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for i in np.random.default_rng(0).permutation(64).tolist():
        document = source.document(i)
        assert document.meta == {"number": i} and int(document.parts[0].ids[0]) == i
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_records_in_any_order_are_those_of_the_documents(tmp_path):
    documents = [scene_like(i) for i in range(100)]
    source = ShardSource(write_folder(tmp_path, {"train": documents}, per_shard=7), "train")
    wanted = [99, 0, 50, 50, 7]
    table = source.parts(wanted)
    assert table.counts.tolist() == [3] * 5
    assert table.length.tolist() == [len(p) for i in wanted for p in documents[i].parts]
    assert table.grid[1].tolist() == [8, 8, 0]
    assert [d.index for d in source.documents(wanted)] == wanted
    assert len(source.parts([]).length) == 0 and source.documents([]) == []
    for outside in ([-1], [100]):
        with pytest.raises(IndexError):
            source.parts(outside)


def order_of(sizes, policies, seed=0, weights=None):
    weights = weights or [1.0] * len(sizes)
    return MixedOrder(sizes, [SourceConfig(w, p) for w, p in zip(weights, policies, strict=True)], seed)


def everything(order, count, most=10_000) -> list[tuple[int, int, int]]:
    """Return (source, epoch, document) of the whole order, taken ``count`` at a time."""
    taken, found = [0] * len(order.sizes), []
    while len(found) < most:
        source, epoch, document, taken = order.take(taken, count)
        if not len(source):
            break
        found += zip(source.tolist(), epoch.tolist(), document.tolist(), strict=True)
    return found


def test_a_dropped_source_leaves_the_mixture_to_the_others():
    order = order_of([5, 1000], ["drop", "repeat"], weights=[1.0, 3.0])
    found = everything(order, 7, 2000)
    small = [(at, d) for at, (k, _, d) in enumerate(found) if k == 0]
    assert sorted(d for _, d in small) == [0, 1, 2, 3, 4] and small[-1][0] < 25
    assert {e for k, e, _ in found if k == 1} >= {0, 1}


def test_a_stopping_source_ends_the_mixture_where_it_would_repeat():
    found = everything(order_of([10, 1000, 4], ["stop", "repeat", "repeat"], weights=[1.0, 2.0, 1.0]), 9)
    counts = Counter(k for k, _, _ in found)
    assert counts[0] == 10 and counts[1] in (20, 21) and counts[2] in (10, 11)
    assert {e for k, e, _ in found if k == 0} == {0}
    assert {e for k, e, _ in found if k == 2} == {0, 1, 2}


def test_where_all_are_dropped_every_document_comes_once():
    found = everything(order_of([10, 33, 4], ["drop"] * 3, weights=[5.0, 2.0, 1.0]), 8)
    assert sorted(found) == [(k, 0, d) for k, n in enumerate([10, 33, 4]) for d in range(n)]


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    policies=st.lists(st.sampled_from(["repeat", "drop", "stop"]), min_size=3, max_size=3),
    counts=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@settings(max_examples=80, deadline=None)
def test_policies_do_not_depend_on_how_the_order_is_taken(sizes, policies, counts):
    order = order_of(sizes, policies[: len(sizes)], weights=[1.0, 2.5, 0.5][: len(sizes)])
    a, b = (everything(order, count, 200)[:200] for count in counts)
    assert a == b


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    base = tmp_path_factory.mktemp("mixture")
    for name, count in (("small", 40), ("large", 90)):
        write_folder(base / name, {"train": [scene_like(i) for i in range(count)]})
    return base


def ending(mixture, small="drop", large="drop", **settings) -> RunConfig:
    sources = {str(mixture / name): SourceConfig(1.0, policy) for name, policy in (("small", small), ("large", large))}
    return run_config("", sources=sources, **settings)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_data_that_end_are_read_to_the_end(mixture, num_workers):
    config = ending(mixture, num_workers=num_workers)
    found = list(Loader(config))
    documents = Counter(d.index for batch, _ in found for d in batch.documents)
    assert documents == Counter(range(130))
    assert [state["ended"] for _, state in found] == [False] * (len(found) - 1) + [True]
    state = json.loads(json.dumps(found[-1][1]))
    assert list(Loader(config, state=state)) == []
    rest = list(Loader(config, state=found[4][1]))
    assert all(same(a, b) for a, b in zip(found[5:], rest, strict=True))
    assert Loader(config, state=state).statistics()["documents"] == 130


def test_data_that_end_end_on_all_ranks_together(mixture):
    config = ending(mixture, "stop", "repeat")
    whole = list(Loader(config))
    assert {d.epoch for batch, _ in whole for d in batch.documents} == {0}
    for world_size in (2, 3):
        ranks = [list(Loader(config, rank=r, world_size=world_size)) for r in range(world_size)]
        assert {len(batches) for batches in ranks} == {len(whole) // world_size}
        for i, batches in enumerate(zip(*ranks, strict=True)):
            for r, (batch, state) in enumerate(batches):
                assert same(batch, whole[i * world_size + r][0]) and state == batches[0][1]


@given(sizes=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6), steps=st.integers(1, 4))
@settings(max_examples=5, deadline=None)
def test_a_mixture_that_ends_is_recut_without_loss(mixture, sizes, steps):
    """Stopped and resumed on other numbers of ranks, with a source that leaves on the way: the same batches in turn."""
    config = ending(mixture, "drop", "stop", num_workers=0)
    whole, found, state = list(Loader(config)), [], None
    for k, world_size in enumerate([*sizes, 1]):
        ranks = [Loader(config, rank=r, world_size=world_size, state=state) for r in range(world_size)]
        count = steps if k < len(sizes) else len(whole)
        for batches in zip(*(itertools.islice(loader, count) for loader in ranks), strict=True):
            found += [batch for batch, _ in batches]
            state = json.loads(json.dumps(batches[0][1]))
        if state["ended"]:
            break
    assert state["ended"] and len(whole) - len(found) < world_size
    assert all(same(a, b) for a, (b, _) in zip(found, whole, strict=False))


def test_training_ends_with_its_data(mixture, tmp_path):
    config = ending(mixture)
    config.out, config.train.steps, config.train.accumulate, config.train.device = str(tmp_path), 1000, 3, "cpu"
    config.train.validation_batches = 0
    trainer = Trainer(config, QuietProgress())
    trainer.run()
    batches = len(list(Loader(config)))
    assert trainer.state.step == -(-batches // 3) and trainer.state.loader["ended"]
    assert trainer.state.loader["counts"]["documents"] == 130
    again = Trainer(config, QuietProgress())
    assert again.finished and again.state.step == trainer.state.step
    again.run()


def test_a_state_of_another_policy_is_refused(mixture):
    state = take(Loader(ending(mixture)), 1)[0][1]
    with pytest.raises(ConfigError, match=r"data\.sources: .*'stop'.* differs from .*'drop'.* was made with"):
        Loader(ending(mixture, "stop"), state=state)


def test_settings_of_sources():
    values = {
        "model": {"modalities": {"text": {"vocab_size": 10}}, "width": 16, "num_heads": 2},
        "data": {"sources": {"a": 2, "b": {"weight": 0.5, "when_exhausted": "stop"}}},
    }
    config = from_dict(RunConfig, values)
    assert config.data.sources == {"a": 2.0, "b": SourceConfig(0.5, "stop")}
    assert from_dict(RunConfig, to_dict(config)) == config
    for wrong, reason in (
        ({"a": 0}, r"data\.sources\.a: 0 is not allowed, it must be above 0"),
        ({"a": {"when_exhausted": "stpo"}}, "did you mean 'stop'"),
        ({"a": {"wight": 1}}, "did you mean 'weight'"),
        ({"a": "many"}, "must be a number"),
        ({"a": {"tasks": {"texd": 1}}}, r"data\.sources\.a\.tasks \('texd'\): unknown name 'texd'.*mean 'text'"),
        ({"a": {"tasks": {"text": 0}}}, r"data\.sources\.a\.tasks: .* weights of which one at least is above 0"),
    ):
        values["data"]["sources"] = wrong
        with pytest.raises(ConfigError, match=reason):
            from_dict(RunConfig, values)


def test_a_source_with_tasks_of_its_own(tmp_path):
    starts = {"new": 0, "old": 100}  # the first id of a text tells the document
    folders = [
        write_folder(tmp_path / name, {"train": [scene_like(start + i) for i in range(40)]})
        for name, start in starts.items()
    ]
    config = run_config(folders[0], tasks={"text,image": 1.0, "image,text": 1.0})
    config.data.drop_condition = 0.0
    config.data.sources = {str(folders[0]): 1.0, str(folders[1]): SourceConfig(1.0, tasks={"image,text": 1.0})}
    found = Counter()
    for batch, _ in take(Loader(config), 20):
        for document in batch.documents:
            (text,) = (part for part in document.parts if part.modality == "text")
            found[int(text.ids[0]) >= 100, document.task] += 1
    assert found.keys() == {(False, "text>image"), (False, "image>text"), (True, "image>text")}, found
    state = take(Loader(config), 1)[0][1]
    config.data.sources = dict.fromkeys(config.data.sources, 1.0)
    with pytest.raises(ConfigError, match=r"data\.sources: .* differs from .*image,text"):
        Loader(config, state=state)


def test_long_validation_splits_are_planned_in_pieces(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, {"seen": [scene_like(i) for i in range(100)]})
    config = run_config(folder)
    whole = list(validation_batches(config, "seen"))
    monkeypatch.setattr("plait.data.loader._MAX_WINDOW_DOCUMENTS", 30)
    pieces = list(validation_batches(config, "seen"))
    for batches in (whole, pieces):
        assert sorted(d.index for b in batches for d in b.documents) == list(range(100))
    ranks = [list(validation_batches(config, "seen", limit=9, rank=r, world_size=2)) for r in range(2)]
    assert same(pieces[:9], [ranks[i % 2][i // 2] for i in range(9)])
