"""Documents of demonstrations: the same for the same row, whatever was read before."""

import numpy as np
import pytest

from plait.codecs import codec_class
from plait.common.errors import ConfigError
from plait.config.episodes import EpisodesConfig
from plait.config.run import PrepareConfig
from plait.prepare.episodes import document, starts
from plait.prepare.raw import ROWS_AT_ONCE
from plait.robots.demonstrations import episode
from plait.robots.metaworld_tasks import EASY
from plait.robots.source import DOCUMENTS, HELD_OUT, PARTS, MetaworldSource, open_metaworld

TASKS = ("handle-press-v3", "coffee-button-v3")
needs_metaworld = pytest.mark.skipif("not __import__('importlib').util.find_spec('metaworld')",
                                     reason="Meta-World is not installed")  # fmt: skip


def source(documents: int = 64, parts=PARTS, tasks=TASKS, **episodes) -> MetaworldSource:
    """Return a source of few tasks, small images."""
    prepare = PrepareConfig(documents=documents, validation_documents=20, image_size=16,
                            episodes=EpisodesConfig(tasks=list(tasks), **episodes))  # fmt: skip
    return MetaworldSource(prepare, 0, parts=parts)


def same(one, other) -> bool:
    """Whether two documents are the same, bit for bit."""
    keys = [key for key, _ in one.parts] == [key for key, _ in other.parts]
    return keys and one.meta == other.meta and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(one.parts, other.parts, strict=True))  # fmt: skip


@needs_metaworld
def test_a_row_is_the_same_whatever_was_read_before():
    whole = list(source().read("train", 0, 40))
    other = source()
    scattered = {row: next(other.read("train", row, row + 1)) for row in (39, 0, 17, 16, 38)}
    assert all(same(found, whole[row]) for row, found in scattered.items())
    for found in whole:
        media = dict(found.parts)
        assert [key for key, _ in found.parts] == ["text", "image", "state", "actions"]
        assert media["image"].shape == (16, 16, 3) and media["image"].any()
        assert media["state"].shape == (1, 4) and media["actions"].shape == (8, 4)


@needs_metaworld
@pytest.mark.parametrize("settings", [{}, {"history": 2}, {"next_share": 0.5, "chunk": 30}])
def test_documents_are_those_of_whole_episodes(settings):
    """The images that are not made are never shown."""
    made = source(**settings)
    task, index = made.task_of("train", 0)
    whole = episode(task, 0, index, image_size=16)
    worlds = []
    for found in made.read("train", 0, DOCUMENTS):
        world = found.meta.get("world", False)
        assert same(found, document(whole, found.meta["start"], made.settings, world=world))
        worlds.append(world)
    assert any(worlds) == bool(settings.get("next_share"))


@needs_metaworld
def test_documents_start_where_the_expert_was_followed():
    """What a chunk says must be what was done, but for the noise."""
    made = source(documents=160, parts=["text", "actions"])
    led = 0
    for found in made.read("train", 0, 160):
        start, astray = found.meta["start"], found.meta["astray"]
        assert not {*range(start, start + made.settings.chunk - 1)} & {*astray}
        led += bool(astray)
    assert led > 16


@needs_metaworld
def test_starts_are_spread_over_the_episode(monkeypatch):
    monkeypatch.setattr("plait.robots.demonstrations.STRAYS", 0)
    made = source(stride=2)
    documents = list(made.read("train", 0, DOCUMENTS))
    places, steps = [d.meta["start"] for d in documents], documents[0].meta["steps"]
    assert places == sorted(places) and {*places} <= {*starts(steps, made.settings)}
    assert len({*places}) == DOCUMENTS and places[0] < 6 and places[-1] > steps - 8


@needs_metaworld
def test_unseen_starts_are_unseen():
    seen, held_out = (next(source().read(split, 0, 1)) for split in ("train", "unseen_starts"))
    assert held_out.meta["episode"] >= HELD_OUT > seen.meta["episode"]
    assert not np.array_equal(dict(seen.parts)["image"], dict(held_out.parts)["image"])


@needs_metaworld
def test_only_the_parts_that_are_wanted_are_made():
    whole, part = next(source().read("train", 5, 6)), next(source(parts=["actions"]).read("train", 5, 6))
    assert [key for key, _ in part.parts] == ["actions"]
    assert np.array_equal(part.parts[0][1], dict(whole.parts)["actions"])


def test_every_task_has_its_share_of_the_episodes():
    made = source(documents=16 * 200, tasks=EASY)
    found = [made.task_of("train", number) for number in range(200)]
    assert len({*found}) == 200
    counts = [[task for task, _ in found].count(task) for task in EASY]
    assert sum(counts) == 200 and max(counts) - min(counts) <= 8
    for task in EASY:  # numbered without a gap
        numbers = sorted(index for one, index in found if one == task)
        assert numbers == [*range(len(numbers))]
    first = [task for task, _ in found[:80:8]]
    assert sorted(first) == sorted(EASY) and first != [task for task, _ in found[80:160:8]]
    assert len({source(documents=16 * 10, tasks=EASY).task_of("train", n)[0] for n in range(10)}) == 10


def test_a_block_needs_few_episodes():
    assert ROWS_AT_ONCE % DOCUMENTS == 0


def test_the_source_is_opened_for_codecs():
    codec = codec_class("text_bpe").from_options({}, "")
    codec.key = "text"
    opened = open_metaworld(PrepareConfig(documents=100), 3, {"text": codec}, None)
    assert opened.splits() == {"train": 100, "unseen_starts": 400} and opened.parts == {"text"}
    assert opened.tasks == EASY and (opened.credit, opened.truths) == ("", None)
    with pytest.raises(ConfigError, match=r"prepare\.image_size: 300 .* at most 256"):
        open_metaworld(PrepareConfig(image_size=300), 0, {"text": codec}, None)
    codec.key = "audio"
    with pytest.raises(ConfigError, match=r"model\.modalities\.speech\.codec: 'text_bpe' reads the parts 'audio', epi"):
        open_metaworld(PrepareConfig(), 0, {"speech": codec}, None)
