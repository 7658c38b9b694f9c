"""The loader: what a document becomes, and that resuming and re-cutting change nothing."""

import json
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.fake_data import MODALITIES, run_config, scene_like, write_folder
from helpers.loading import same, take
from helpers.models import with_modality
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError, DataError
from plait.common.randomness import uniforms
from plait.config.run import SourceConfig
from plait.data.loader import Loader, open_task_sources, validation_batches
from plait.data.loader import _Packer as Packer
from plait.data.mixing import MixedOrder
from plait.data.shards import ShardSource, read_index
from plait.data.sources import ALL_GIVEN, HOST_GIVEN, resolve_vocabulary
from plait.evaluate.losses import mean_losses, split_losses
from plait.model.mot import MixtureOfTransformers

TASKS = {"text,image": 2.0, "image,text": 1.0, "text,image,speech": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    documents = [scene_like(i) for i in range(200)]
    held_out = [scene_like(i, seed=1) for i in range(30)] + [Document([Part("text", np.arange(9))])]
    return write_folder(tmp_path_factory.mktemp("data"), {"train": documents, "seen": held_out})


def seen(batches) -> Counter:
    return Counter((d.epoch, d.index, d.task) for batch, _ in batches for d in batch.documents)


def test_shards_give_back_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    documents = []
    for i in range(40):
        parts = []
        for kind in rng.integers(0, 3, rng.integers(1, 6)):
            if kind == 0:
                parts.append(Part("text", rng.integers(0, 256, rng.integers(1, 9))))
            elif kind == 1:
                parts.append(Part("depth", latents=rng.standard_normal((6, 3)).astype(np.float32), grid=(2, 3)))
            else:
                parts.append(Part("speech", rng.integers(0, 128, 4), grid=(4,)))
        documents.append(Document(parts, meta={"number": i, "text": "a\u2028b\nü"}))
    source = ShardSource(write_folder(tmp_path, {"train": documents}, per_shard=16), "train")
    assert len(source) == 40
    for i, written in enumerate(documents):
        read = source.document(i)
        assert read.meta == written.meta == source.meta(i) and len(read.parts) == len(written.parts)
        for a, b in zip(read.parts, written.parts, strict=True):
            assert (a.modality, a.grid) == (b.modality, b.grid)
            np.testing.assert_array_equal(
                a.ids if b.ids is not None else a.latents, b.ids if b.latents is None else b.latents
            )


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_resuming_is_bit_equal_wherever_it_stopped(folder, num_workers):
    config = run_config(folder, num_workers=num_workers, tasks=TASKS)
    whole = take(Loader(config), 40)
    for stop in (1, 7, 23, 39):
        state = json.loads(json.dumps(whole[stop - 1][1]))
        rest = take(Loader(config, state=state), 40 - stop)
        assert all(same(a, b) for a, b in zip(whole[stop:], rest, strict=True))


def test_resuming_across_windows(folder, monkeypatch):
    monkeypatch.setattr("plait.data.loader.WINDOW_BINS", 3)
    config = run_config(folder, tasks=TASKS)
    whole = take(Loader(config), 30)
    assert whole[-1][1]["window"] > 5
    for stop in range(1, 30):
        assert same(take(Loader(config, state=whole[stop - 1][1]), 1)[0], whole[stop])


@given(cuts=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3)), min_size=1, max_size=4))
@settings(max_examples=12, deadline=None)
def test_recutting_over_ranks_loses_and_repeats_nothing(folder, cuts):
    config = run_config(folder, tasks=TASKS)
    state, found, total = None, Counter(), 0
    for world_size, steps in cuts:
        by_rank = [take(Loader(config, rank=r, world_size=world_size, state=state), steps) for r in range(world_size)]
        states = [batches[-1][1] for batches in by_rank]
        assert all(s == states[0] for s in states)
        state = states[0]
        found = sum((seen(batches) for batches in by_rank), found)
        total += world_size * steps
    assert found == seen(take(Loader(config), total))


def test_every_epoch_has_every_document_once(folder):
    config = run_config(folder, tasks=TASKS, drop_condition=0.0)
    batches = take(Loader(config), 220)
    by_epoch = {}
    for batch, _ in batches:
        for document in batch.documents:
            by_epoch.setdefault(document.epoch, []).append(document.index)
    assert sorted(by_epoch[0]) == sorted(by_epoch[1]) == list(range(200))
    assert by_epoch[0] != by_epoch[1]
    statistics = Loader(config, state=batches[-1][1]).statistics()
    assert statistics["batches"] == 220
    assert statistics["documents"] == sum(len(b.documents) for b, _ in batches)
    assert statistics["tokens"] == sum(b.num_tokens for b, _ in batches)
    assert all(b.num_tokens <= 512 for b, _ in batches)


def test_tasks_choose_order_roles_and_dropped_conditions(folder):
    config = run_config(folder, tasks=TASKS, drop_condition=0.25)
    documents = [d for batch, _ in take(Loader(config), 400) for d in batch.documents]
    counts = Counter(d.task for d in documents)
    assert set(counts) == {"text>image", "image>text", "text>image>speech", "image", "text", "speech"}
    share = {task: n / len(documents) for task, n in counts.items()}
    assert share["text>image"] == pytest.approx(0.5 * 0.75, abs=0.04)
    assert share["image"] == pytest.approx(0.5 * 0.25, abs=0.03)
    for d in documents:
        assert [p.modality for p in d.parts] == d.task.split(">")
        assert [p.role for p in d.parts] == ["understanding"] * (len(d.parts) - 1) + ["generation"]
    drawn = {(d.epoch, d.index): d.task for d in documents}
    assert 110 < sum(drawn[0, i] != drawn[1, i] for i in range(200)) < 190  # drawn anew in every epoch
    again = run_config(folder, tasks=TASKS, drop_condition=0.25, batch_tokens=2048)
    for batch, _ in take(Loader(again), 20):  # another packing, the same draws
        assert all(drawn[d.epoch, d.index] == d.task for d in batch.documents)


def mixed_document(rng) -> Document:
    """Return parts of four modalities in any order, some of them several times."""
    parts = []
    for kind in rng.integers(0, 4, rng.integers(1, 9)):
        n = int(rng.integers(1, 12))
        if kind == 3:
            parts.append(Part("depth", latents=rng.standard_normal((2 * n, 3)).astype(np.float32), grid=(2, n)))
        else:
            name, size = (("text", 256), ("image", 64), ("speech", 128))[kind]
            parts.append(Part(name, rng.integers(0, size, n)))
    return Document(parts)


MIXED_TASKS = {"text,depth,depth": 1.0, "depth,text": 1.0, "text,image,text": 1.0, "text,text,depth": 0.5,
               "speech,image,depth": 0.5, "text,image": 0.5}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = [mixed_document(rng) for _ in range(300)]
    # every fourth has the parts for all tasks
    every = ("text", "image", "speech", "depth")
    for d in documents[::4]:
        while lacking := [n for n in every if sum(p.modality == n for p in d.parts) < 2]:
            d.parts += [p for p in mixed_document(rng).parts if p.modality == lacking[0]]
    return write_folder(tmp_path_factory.mktemp("mixed"), {"train": documents})


@pytest.mark.parametrize("later_sees", ["noised", "clean_copy", "nothing"])
def test_documents_are_as_long_as_was_promised(mixed, later_sees):
    config = run_config(mixed, ("text", "image", "speech", "depth"))
    config.model = with_modality(config.model, "depth", later_sees=later_sees)
    config = resolve_vocabulary(config)
    settings = {"drop_condition": 0.2, "drop_host": 0.3}
    for tasks in ({}, MIXED_TASKS):
        (source,) = open_task_sources(config, "train", tasks, **settings)
        found = Counter()
        for epoch in range(3):
            draw = source.draw(np.arange(len(source)), epoch)
            assert draw.dropped.dtype == np.int8
            for i in range(len(source)):
                document = source.document(i, int(draw.task[i]), int(draw.dropped[i]))
                length = pack([document], config.model).lengths[0] if document.parts else 2
                assert draw.lengths[i] == length, (draw.task[i], draw.dropped[i], [p.modality for p in document.parts])
                found[int(draw.dropped[i])] += 1
        assert set(found) == ({0, ALL_GIVEN, HOST_GIVEN} if tasks else {0})


@pytest.mark.parametrize("later_sees", ["noised", "clean_copy"])
@pytest.mark.parametrize("policy", ["split", "truncate"])
def test_pieces_are_as_long_as_was_promised(mixed, later_sees, policy):
    config = run_config(mixed, ("text", "image", "speech", "depth"), batch_tokens=60, too_long=policy)
    config.model = with_modality(config.model, "depth", later_sees=later_sees)
    packer = Packer(resolve_vocabulary(config), open_task_sources(resolve_vocabulary(config), "train", {}))
    everything = np.arange(300)
    window = packer.window(np.zeros_like(everything), np.zeros_like(everything), everything)
    assert window.counts["split" if policy == "split" else "truncated"] > 50
    for chosen in window.bins:
        batch = packer.batch(window, chosen)
        assert batch.lengths == window.lengths[chosen].tolist() and batch.num_tokens <= 60


def test_only_the_host_is_dropped_at_its_rate(mixed):
    config = resolve_vocabulary(run_config(mixed, ("text", "image", "speech", "depth")))

    def draws(**settings):
        (source,) = open_task_sources(config, "train", MIXED_TASKS, **settings)
        found = [source.draw(np.arange(300), epoch) for epoch in range(60)]
        return np.concatenate([d.task for d in found]), np.concatenate([d.dropped for d in found])

    task, dropped = draws(drop_condition=0.2, drop_host=0.3)
    for t, name in enumerate(MIXED_TASKS):
        share = np.bincount(dropped[task == t], minlength=3) / (task == t).sum()
        host = 0.3 if name in ("text,depth,depth", "text,image,text") else 0.0  # it and another one are given
        assert share == pytest.approx([0.8 - host, 0.2, host], abs=0.035), name
        assert share[HOST_GIVEN] == 0.0 or host
    assert not dropped[task < 0].any()
    task_without, without = draws(drop_condition=0.2)
    assert (task == task_without).all() and ((dropped == ALL_GIVEN) == without).all()
    uniform = [uniforms(0, "drop condition", item=np.arange(300), epoch=e) for e in range(60)]
    assert (without == ((np.concatenate(uniform) < 0.2) & (task >= 0))).all()


def test_what_is_left_without_the_host(tmp_path):
    kinds = ("text", "image", "text", "image", "speech", "text")
    parts = [Part(name, np.full(3, n)) for n, name in enumerate(kinds)]
    folder = write_folder(tmp_path, {"train": [Document(parts)]})

    def parts_left(task):
        config = run_config(folder, tasks={task: 1.0}, batch_tokens=64, drop_condition=0.0, drop_host=1 - 1e-9)
        (document, *_) = take(Loader(config), 1)[0][0].documents
        return document.task, [(int(p.ids[0]), p.role == "generation") for p in document.parts]

    assert parts_left("text,image,speech") == ("image>speech", [(1, False), (3, False), (4, True)])
    assert parts_left("text,image,text") == ("image>text", [(1, False), (3, False), (2, True), (5, True)])
    assert parts_left("image,text,image") == ("image>image", [(1, False), (3, True)])
    assert parts_left("text,speech") == ("text>speech", [(0, False), (2, False), (5, False), (4, True)])


def test_documents_without_a_modality(tmp_path):
    """Of a task that says so: documents that have the modality serve the other tasks alone."""
    spoken = [scene_like(i) for i in range(40)]
    silent = [Document(document.parts[:2], document.meta) for document in spoken[:20]]
    path = write_folder(tmp_path / "data", {"train": silent + spoken[20:], "seen": silent})
    tasks = {"image,text without speech": 1.0, "text,speech": 1.0}
    (source,) = open_task_sources(run_config(path, tasks=tasks), "train", tasks)
    assert source.draw(np.arange(40)).task.tolist() == [0] * 20 + [1] * 20
    (source,) = open_task_sources(run_config(path), "train", {"image,text without speech": 1.0})
    assert source.serves(np.arange(40))[:, 0].tolist() == [True] * 20 + [False] * 20
    config = run_config(path, tasks=tasks)
    losses = split_losses(MixtureOfTransformers(resolve_vocabulary(config).model), config, "seen")[1]
    assert ("image,text without speech", "text") in losses
    with pytest.raises(ConfigError, match=r"data\.tasks \('image,text without sound'\): unknown name 'sound'"):
        run_config(path, tasks={"image,text without sound": 1.0})


def test_without_tasks_parts_stay_as_written(folder):
    batch, _ = take(Loader(run_config(folder)), 1)[0]
    assert {d.task for d in batch.documents} == {"text>image>speech"}
    for d in batch.documents:
        written = scene_like(d.index)
        for a, b in zip(d.parts, written.parts, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
            assert a.grid == b.grid


def test_repeated_mentions_take_parts_in_turn(tmp_path):
    parts = [Part("text", np.full(3, n)) if n % 2 == 0 else Part("image", np.full(4, n)) for n in range(6)]
    folder = write_folder(tmp_path, {"train": [Document(parts)]})

    def first_ids(task, drop=0.0):
        batch, _ = take(Loader(run_config(folder, tasks={task: 1.0}, batch_tokens=64, drop_condition=drop)), 1)[0]
        (document, *_) = batch.documents
        return [int(p.ids[0]) for p in document.parts]

    assert first_ids("text,image") == [0, 2, 4, 1, 3, 5]
    assert first_ids("text,image,text") == [0, 1, 3, 5, 2, 4]
    assert first_ids("text,speech") == [0, 1, 2, 3, 4, 5]  # no speech here: as written
    assert first_ids("text,image,text", drop=1 - 1e-9) == [2, 4]


def test_modalities_that_the_model_lacks_are_left_out(folder):
    batch, _ = take(Loader(run_config(folder, names=("text", "speech"))), 1)[0]
    assert {d.task for d in batch.documents} == {"text>speech"}


@pytest.mark.parametrize("policy", ["split", "truncate", "skip"])
def test_documents_that_are_too_long_are_counted(tmp_path, policy):
    documents = [scene_like(i) for i in range(20)] + [Document([Part("text", np.arange(700) % 256)])]
    folder = write_folder(tmp_path, {"train": documents})
    config = run_config(folder, batch_tokens=300, too_long=policy)
    loader = Loader(config)
    batches = take(loader, 60)
    statistics = loader.statistics()
    pieces = [d for batch, _ in batches for d in batch.documents if d.epoch == 0 and d.index % 21 == 20]
    name = {"split": "split", "truncate": "truncated", "skip": "skipped"}[policy]
    assert statistics[name] >= 1 and sum(statistics[k] for k in ("split", "truncated", "skipped")) == statistics[name]
    joined = [int(i) for d in sorted(pieces, key=lambda d: d.index) for p in d.parts for i in p.ids]
    assert joined == [i % 256 for i in range({"split": 700, "truncate": 298, "skip": 0}[policy])]
    assert len({d.index for d in pieces}) == len(pieces)


def test_nothing_that_fits_is_a_data_error(tmp_path):
    folder = write_folder(tmp_path, {"train": [Document([Part("text", np.arange(99))])]})
    with pytest.raises(DataError, match="32 tokens hold none of"):
        take(Loader(run_config(folder, batch_tokens=32, too_long="skip")), 1)
    with pytest.raises(DataError, match="no document in its split"):
        Loader(run_config(write_folder(tmp_path / "empty", {"train": []})))


def test_weights_mix_sources(tmp_path):
    for name, count in (("small", 5), ("large", 300)):
        write_folder(tmp_path / name, {"train": [scene_like(i) for i in range(count)]})
    sources = {str(tmp_path / "small"): 1.0, str(tmp_path / "large"): 3.0}
    batches = take(Loader(run_config("", sources=sources)), 100)
    documents = [d for batch, _ in batches for d in batch.documents]
    small = sum(d.index < 5 for d in documents)
    assert small / len(documents) == pytest.approx(0.25, abs=0.01)
    write_folder(tmp_path / "other", {"train": [scene_like(0)]}, modalities={
        name: m | {"fingerprint": "another"} for name, m in MODALITIES.items()})  # fmt: skip
    with pytest.raises(DataError, match="another codec"):
        Loader(run_config("", sources=sources | {str(tmp_path / "other"): 1.0}))


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3), seed=st.integers(0, 99), cut=st.integers(0, 120))
@settings(max_examples=60, deadline=None)
def test_mixed_order_goes_on_where_it_stood(sizes, seed, cut):
    weights = [float(1 + (seed + k) % 4) for k in range(len(sizes))]
    order = MixedOrder(sizes, [SourceConfig(w) for w in weights], seed)
    start = [0] * len(sizes)
    *whole, end = order.take(start, 120)
    *first, middle = order.take(start, cut)
    *second, last = order.take(middle, 120 - cut)
    assert last == end
    for a, b, c in zip(whole, first, second, strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c]))
    for k, share in enumerate(np.array(weights) / sum(weights)):
        assert abs((whole[0] == k).sum() - 120 * share) <= len(sizes)


def test_validation_is_finite_and_the_same_every_time(folder):
    config = run_config(folder, tasks=TASKS)
    first = list(validation_batches(config, "seen", "image,text"))
    assert sorted(d.index for b in first for d in b.documents) == list(range(30))
    assert {d.task for b in first for d in b.documents} == {"image>text"}
    assert same(first, list(validation_batches(config, "seen", "image,text")))
    assert same(first[:2], list(validation_batches(config, "seen", "image,text", 2)))
    ranks = [list(validation_batches(config, "seen", "image,text", rank=r, world_size=2)) for r in range(2)]
    assert same(first, [ranks[i % 2][i // 2] for i in range(len(first))])
    assert sum(len(b.documents) for b in validation_batches(config, "seen")) == 31
    with pytest.raises(ConfigError, match="did you mean 'image'"):
        next(validation_batches(config, "seen", "imag,text"))
    with pytest.raises(DataError, match="allowed: seen, train"):
        next(validation_batches(config, "sen"))


def test_a_split_that_fits_no_task_is_validated_as_written(tmp_path):
    splits = {
        "passages": [Document([Part("text", np.arange(i, i + 9))]) for i in range(5)],
        "seen": [scene_like(i) for i in range(5)],
    }
    path = write_folder(tmp_path / "data", {"train": [scene_like(0)], **splits})
    config = resolve_vocabulary(run_config(path, tasks={"text,image": 1.0, "image,text": 1.0}))
    model = MixtureOfTransformers(config.model)
    losses, by_task = split_losses(model, config, "passages")
    assert losses == mean_losses(model, validation_batches(config, "passages")) and list(losses) == ["text"]
    assert by_task == {("", "text"): losses["text"]}
    losses, by_task = split_losses(model, config, "seen")
    assert losses == {"text": by_task["image,text", "text"], "image": by_task["text,image", "image"]}


def test_vocabulary_comes_from_the_codecs(folder):
    config = run_config(folder)
    resolved = resolve_vocabulary(config, read_index(folder))
    assert str(resolved.model.layout) == "256 of text, 64 of image, 128 of speech"
    assert config.model.modalities["text"].vocab_size == 0
    config.model = with_modality(config.model, "image", vocab_size=100)
    assert resolve_vocabulary(config).model.modalities["image"].vocab_size == 100
    config.model = with_modality(config.model, "image", vocab_size=63)
    with pytest.raises(ConfigError, match=r"model.modalities.image.vocab_size: 63 .* at least 64"):
        Loader(config)
    config.modalities["image"].codec = "other"
    with pytest.raises(ConfigError, match=r"model.modalities.image.codec: 'other', but .* 'fake_image'"):
        Loader(config)


def test_a_state_of_other_settings_is_refused(folder):
    state = take(Loader(run_config(folder)), 1)[0][1]
    with pytest.raises(ConfigError, match=r"data.batch_tokens: 600 differs from 512, .* use the old setting"):
        Loader(run_config(folder, batch_tokens=600), state=state)
    with pytest.raises(ConfigError, match=r"data.drop_host: 0.2 differs from 0.0, "):
        Loader(run_config(folder, drop_host=0.2), state=state)
    with pytest.raises(ConfigError, match=r"data.max_document_tokens: 513 .* at most 512"):
        Loader(run_config(folder, max_document_tokens=513))


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_shard_is_named(tmp_path, harm):
    folder = write_folder(tmp_path, {"train": [scene_like(i) for i in range(50)]})
    path = folder / "shards/train-00000.safetensors"
    data = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-10] if harm == "truncate" else data[:-10] + bytes([data[-10] ^ 1]) + data[-9:])
    with pytest.raises(DataError, match=r"train-00000\.safetensors"):
        ShardSource(folder, "train").document(49)


def test_missing_and_foreign_indexes(tmp_path):
    with pytest.raises(DataError, match="plait prepare"):
        Loader(run_config(tmp_path))
    (tmp_path / "index.json").write_text('{"schema_version": 99, "modalities": {}, "splits": {}}')
    with pytest.raises(DataError, match="schema_version 99"):
        read_index(tmp_path)
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(DataError, match="not an index"):
        read_index(tmp_path)


def test_batches_are_finished_ahead_in_the_loaders_threads(folder):
    """What each batch needs before it is sent is done in other threads, in any order, and changes nothing else."""
    config, threads = run_config(folder, num_workers=2), []

    def finish(batch):
        threads.append(threading.current_thread())
        batch.counts = [-c for c in batch.counts]
        return batch

    plain, finished = take(Loader(config), 6), take(Loader(config, finish=finish), 6)
    assert threading.main_thread() not in threads and len(threads) >= 6
    for (a, state), (b, other) in zip(plain, finished, strict=True):
        assert torch.equal(a.ids, b.ids) and state == other and b.counts == [-c for c in a.counts]


def test_some_documents_may_stay_as_written(folder):
    """The task as_written has its own weight beside part orders; each draw depends on the document alone."""
    order = "text,image"
    config = run_config(folder, tasks={order: 1, "as_written": 3})
    source = open_task_sources(config, "train", config.data.tasks, drop_condition=0.5)[0]
    everything = np.arange(len(source))
    draw = source.draw(everything)
    able = draw.task >= 0
    only = open_task_sources(config, "train", {order: 1})[0].draw(everything).task >= 0
    assert 0.15 < able.sum() / only.sum() < 0.35 and not (able & ~only).any()
    written = np.flatnonzero(~able)
    assert (draw.dropped[written] == 0).all() and (draw.dropped[able] > 0).any()
    for i in written[:20].tolist():
        document = source.document(i, int(draw.task[i]), 0)
        assert [p.modality for p in document.parts] == [p.modality for p in source.source.document(i).parts]
        assert {p.role for p in document.parts} == {"generation"}
    with pytest.raises(ConfigError, match=r"as_writen.*as_written"):
        run_config(folder, tasks={"as_writen": 1})
