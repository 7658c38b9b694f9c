"""Documents of traffic: drawn by seed, split and index alone; captions are true; what is held out stays out."""

from types import SimpleNamespace

import numpy as np
import pytest

from plait.codecs.action_ids import ActionIdsCodec
from plait.codecs.text import BytePairCodec
from plait.codecs.traffic import TrafficCodec, X, ordered
from plait.common.errors import ConfigError
from plait.config.run import PrepareConfig
from plait.driving.drivers import INSTRUCTIONS
from plait.driving.events import happening, read_sentence
from plait.driving.simulate import ACTIONS, overlaps, watch
from plait.driving.source import PARTS, open_driving
from plait.driving.truths import DrivingTruths, happening_of, hits_of, meta_of
from plait.driving.world import CHUNK, MOMENTS, SPLITS, World, combinations, fits, held_out, vehicle

pytest.importorskip("highway_env")

NAMES = [a.lower() for a in ACTIONS]
CODECS = {
    "text": BytePairCodec.from_options({}),
    "traffic": TrafficCodec.from_options({}),
    "actions": ActionIdsCodec.from_options({"choices": NAMES, "steps": CHUNK}),
}
SETTINGS = PrepareConfig(source="driving", documents=40, validation_documents=6)


@pytest.fixture(scope="module")
def scenes():
    world = World(1)
    return {split: [world.scene(split, i) for i in range(8)] for split in ("train", *SPLITS)}


def test_captions_are_true(scenes):
    for drawn in scenes.values():
        for scene in drawn:
            track = watch(scene.traffic)
            assert happening(scene.traffic, track) == scene.happening == read_sentence(scene.caption)
            assert not overlaps(scene.traffic, track).any()
            assert np.array_equal(scene.traffic, ordered(scene.traffic)) and scene.traffic[0, X] == 0
    (there,) = {s.traffic.shape for drawn in scenes.values() for s in drawn}
    again = CODECS["traffic"].decode(CODECS["traffic"].encode([s.traffic for s in scenes["train"]]))
    assert there == (16, 8)
    assert [happening(item, watch(item)) for item in again] == [s.happening for s in scenes["train"]]


def test_what_is_held_out_stays_out(scenes):
    held = held_out(1)
    assert len(held) == 16 and held != held_out(2)
    assert all(combinations(s.happening) & held for s in scenes["unseen_combinations"])
    assert not any(combinations(s.happening) & held for split in ("train", "seen") for s in scenes[split])
    for part in range(3):  # each is seen in other combinations
        assert len({pair[part] for pair in held}) > 1


def test_draws_depend_on_seed_split_and_index_alone(scenes):
    assert np.array_equal(World(1).scene("train", 5).traffic, scenes["train"][5].traffic)
    assert len({s.traffic.tobytes() for drawn in scenes.values() for s in drawn}) == 24
    assert not np.array_equal(World(2).scene("train", 5).traffic, scenes["train"][5].traffic)


def test_moments_of_drives():
    world = World(1)
    moments = [world.moment("train", i) for i in range(2 * MOMENTS)]
    assert {m.sentence for m in moments} <= {*INSTRUCTIONS} and len({m.sentence for m in moments[:MOMENTS]}) == 1
    for moment in moments:
        assert moment.actions.shape == (CHUNK,) and moment.actions.dtype == np.int32
        assert INSTRUCTIONS[moment.sentence]([moment.seen])[0][0] == moment.actions[0]
        CODECS["traffic"].encode([moment.seen])
    again = World(1).moment("train", 6)
    assert np.array_equal(again.seen, moments[6].seen) and np.array_equal(again.actions, moments[6].actions)


def test_hard_scenes_are_those_in_which_something_is_in_the_way():
    world = World(1)
    hard = world.hard("seen", 3)
    drawn = [s for s in (world.scene("seen", i) for i in range(12)) if s.happening.is_hard]
    assert len(hard) == 3 and [s.caption for s in hard[: len(drawn)]] == [s.caption for s in drawn[:3]]
    assert all(np.array_equal(a.traffic, b.traffic) for a, b in zip(hard, drawn, strict=False))


def test_vehicles_have_room():
    rows = [vehicle("car", 0, 1, 25)]
    assert not fits(rows, vehicle("car", 10, 1, 25)) and fits(rows, vehicle("car", 10, 2, 25))
    assert not fits(rows, vehicle("car", 10, 2, 25, into=1)) and fits(rows, vehicle("car", 30, 1, 25))
    assert not fits(rows, vehicle("car", 30, 1, 5)) and not fits(rows, vehicle("lorry", 18, 1, 25))


def test_documents_of_the_source():
    source = open_driving(SETTINGS, 1, CODECS, None)
    assert source.splits() == {"train": 40, "unseen_combinations": 6, "seen": 6} and source.credit == ""
    scene, moment = source.read("train", 4, 6)
    assert [key for key, _ in scene.parts] == ["text", "traffic"] and [key for key, _ in moment.parts] == [*PARTS]
    assert happening_of(scene.meta) == read_sentence(scene.parts[0][1]) and happening_of(moment.meta) is None
    assert moment.meta["caption"] == moment.parts[0][1] in INSTRUCTIONS
    only = open_driving(SETTINGS, 1, CODECS, ["traffic"])
    (again,) = only.read("train", 4, 5)
    assert [key for key, _ in again.parts] == ["traffic"] and np.array_equal(again.parts[0][1], scene.parts[1][1])
    assert source.trials is not None
    plain = open_driving(SETTINGS, 1, {n: CODECS[n] for n in ("text", "traffic")}, None)
    assert plain.trials is None and all(len(d.parts) == 2 for d in plain.read("train", 0, 3))


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("traffic", TrafficCodec.from_options({"vehicles": 8}),
         r"model.modalities.traffic.codec_options.vehicles: 8 is not allowed, it must be 16, as in the traffic"),
        ("traffic", TrafficCodec.from_options({"lanes": 3}), "codec_options.lanes: 3"),
        ("actions", ActionIdsCodec.from_options({"choices": 5, "steps": 4}), "codec_options.choices: 5"),
        ("actions", ActionIdsCodec.from_options({"choices": NAMES, "steps": 2}), "codec_options.steps: 2"),
        ("view", SimpleNamespace(name="image_pixels", key="image"), "model.modalities.view.codec: 'image_pixels' "
         "reads the parts 'image', traffic has text, traffic, actions"),
    ],
)  # fmt: skip
def test_codecs_that_do_not_fit(name, codec, message):
    with pytest.raises(ConfigError, match=message):
        open_driving(SETTINGS, 1, CODECS | {name: codec}, None)


def test_truths(scenes):
    truths, drawn = DrivingTruths(), scenes["seen"]
    metas = [meta_of(s.happening) for s in drawn]
    assert [truths.caption(m) for m in metas] == [s.caption for s in drawn]
    told = {"caption": "keep the lane"}
    hits = truths.item_scores("traffic", [s.traffic for s in drawn] + [drawn[0].traffic], [*metas, told])
    assert [*hits] == ["event", "density", "lane", "ahead", "cut_ins", "overtaken"]
    assert all(values == [True] * 8 + [None] for values in hits.values())
    assert truths.item_scores("image", [], []) == {} and truths.caption(told) == "keep the lane"
    said = truths.scores([s.caption for s in drawn] + ["nonsense"], [*metas, metas[0]])
    assert all(values == [True] * 8 + [False] for values in said.values())
    others = hits_of([s.happening for s in drawn[1:]], metas[:-1])
    assert not all(others["event"]) and {*others} == {*hits}
    assert truths.nearest(metas, [told, *metas]) == [1 + metas.index(m) for m in metas]
    assert truths.nearest([told], [*metas, told]) == [8]
    assert not any(truths.thing(m) for m in metas) and truths.things() == []
