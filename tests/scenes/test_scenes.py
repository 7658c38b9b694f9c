"""The embedded scenes: deterministic, disjoint where they say so, and true to their captions."""

from dataclasses import replace

import numpy as np
import pytest

from plait.common.articles import with_article
from plait.common.errors import ConfigError, ResourceError
from plait.config.run import PrepareConfig
from plait.scenes import drawings, speaker
from plait.scenes import source as source_module
from plait.scenes.truths import SceneTruths, ground_of
from plait.scenes.world import ALL, BACKGROUNDS, NUM_HELD_OUT, VOICES, Scene, World, visible_on

PREPARE = PrepareConfig(documents=3000, validation_documents=300, image_size=32)


def same(a, b) -> bool:
    return a.meta == b.meta and all(
        x[0] == y[0] and (x[1] == y[1] if isinstance(x[1], str) else np.array_equal(x[1], y[1]))
        for x, y in zip(a.parts, b.parts, strict=True)
    )


def test_documents_have_the_promised_form():
    source = source_module.SceneSource(PREPARE, 0)
    assert source.splits() == {
        "train": 3000, "seen": 300, "unseen_concepts": 300, "unseen_combinations": 300, "other_voice": 300,
    }  # fmt: skip
    for document in source.read("train", 60, 70):
        (text, caption), (shown, image), (audio, clip) = document.parts
        assert (text, shown, audio) == ("text", "image", "audio")
        assert caption == document.meta["caption"]
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        assert clip.dtype == np.float32 and clip.ndim == 1 and 0.5 < len(clip) / 16000 < 6
        assert 0.05 < np.abs(clip).max() <= 1.0
        assert all(o["name"] in caption for o in document.meta["objects"])
        assert document.meta["background"] in caption and document.meta["voice"] in VOICES


def test_reading_does_not_depend_on_the_cut():
    whole = list(source_module.SceneSource(PREPARE, 3).read("seen", 0, 150))
    other = source_module.SceneSource(PREPARE, 3)
    pieces = [d for start, stop in ((130, 150), (0, 1), (1, 63), (63, 66), (66, 130))
              for d in zip(range(start, stop), other.read("seen", start, stop))]  # fmt: skip
    assert sorted(i for i, _ in pieces) == list(range(150))
    assert all(same(whole[i], document) for i, document in pieces)


def test_seeds_and_splits_differ():
    def captions(seed, split):
        return [World(seed).scene(split, i).caption for i in range(50)]

    assert captions(0, "train") == captions(0, "train")
    assert captions(0, "train") != captions(1, "train")
    assert captions(0, "train") != captions(0, "seen")


def test_parts_that_nobody_needs_are_not_made():
    document = next(iter(source_module.SceneSource(PREPARE, 0, parts=["image"]).read("train", 0, 1)))
    assert [name for name, _ in document.parts] == ["image"]


def test_concepts_are_many_unique_and_split_by_family():
    loaded = drawings.all_concepts()
    assert len(loaded) > 1500
    assert len({c.name for c in loaded}) == len({c.code for c in loaded}) == len(loaded)
    assert not any("skin tone" in c.name for c in loaded)
    for seed in (0, 1):
        split = drawings.split_concepts(seed)
        families = {name: {c.family for c in members} for name, members in split.items()}
        assert not families["train"] & families["unseen"]
        assert not any(c.group in drawings.HELD_OUT_GROUPS for c in split["train"])
        assert sum(c.group == "country-flag" for members in split.values() for c in members) <= 40
        assert len(split["train"]) > 1300 and len(split["unseen"]) > 80


def test_families_ignore_gender_number_and_direction():
    assert drawings.family_of("woman running facing right") == drawings.family_of("man running") == "running"
    assert drawings.family_of("dog face") == drawings.family_of("dog")
    assert drawings.family_of("three o'clock") == drawings.family_of("one-thirty")
    assert drawings.family_of("red apple") != drawings.family_of("red heart")


def shown(split: str, count: int, size: int = ALL) -> list[Scene]:
    return [World(0, size).scene(split, i) for i in range(count)]


def test_unseen_concepts_never_appear_elsewhere():
    unseen = {c.name for c in drawings.split_concepts(0)["unseen"]}
    assert all({c.name for c in s.concepts} <= unseen for s in shown("unseen_concepts", 300))
    for split in ("train", "seen", "unseen_combinations", "other_voice"):
        assert all(not {c.name for c in s.concepts} & unseen for s in shown(split, 500))


def test_every_training_concept_leads_equally_often():
    count = len(World(0).train)
    assert {c.code for s in shown("train", count) for c in s.concepts} == {
        c.code for c in drawings.split_concepts(0)["train"]
    }


def pairs(scene: Scene) -> set[frozenset[str]]:
    return {frozenset((a.code, b.code)) for a in scene.concepts for b in scene.concepts if a != b}


def test_unseen_combinations_never_meet_in_training():
    held_out = [p for s in shown("unseen_combinations", 300) for p in pairs(s)]
    assert len(held_out) == 300  # always two drawings
    trained = {p for s in shown("train", 3000) for p in pairs(s)}
    assert len(trained) > 300 and not trained & set(held_out)
    by_code = {c.code: c for c in drawings.all_concepts()}
    assert not any(World(0).meets_in_training(*(by_code[code] for code in pair)) for pair in held_out)
    assert all(World(0).meets_in_training(*(by_code[code] for code in pair)) for pair in trained)


def test_relations_are_true():
    for scene in shown("unseen_combinations", 200):
        (x0, y0), (x1, y1) = scene.centers
        truth = {"left of": x0 < x1, "right of": x0 > x1, "above": y0 < y1, "below": y0 > y1}
        assert truth[scene.relation]


def test_drawings_lie_inside_and_grounds_show():
    for scene in shown("train", 60):
        image = source_module.draw(scene, 64)
        ground = np.array([int(BACKGROUNDS[scene.background][i : i + 2], 16) for i in (1, 3, 5)])
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(int)
        assert (np.abs(border - ground).max(1) < 60).mean() > 0.9, scene.caption
        assert (np.abs(image.astype(int) - ground).max(2) > 30).mean() > 0.02, scene.caption


def test_articles():
    said = [
        ("red apple", "a red apple"), ("ox", "an ox"), ("unicorn", "a unicorn"), ("grapes", "grapes"),
        ("flag of Chad", "the flag of Chad"), ("bus", "a bus"), ("women wrestling", "women wrestling"),
        ("hourglass", "an hourglass"), ("face with tears of joy", "a face with tears of joy"), ("bread", "bread"),
    ]  # fmt: skip
    assert [with_article(name) for name, _ in said] == [sentence for _, sentence in said]


def test_speaking_does_not_depend_on_the_clock_or_earlier_calls():
    sentence = {"text": "a fox", "voice": "en-us+f3", "rate": 220, "pitch": 50, "variation": 50}
    first = speaker.speak([sentence, sentence])
    speaker.speak([sentence | {"voice": "en-us"}])
    assert speaker.speak([sentence, sentence]) == first and len(first) == 2


def test_an_unknown_voice_is_one_sentence():
    with pytest.raises(ResourceError, match="no voice 'xx-nobody'"):
        speaker.speak([{"text": "a fox", "voice": "xx-nobody", "rate": 220, "pitch": 50, "variation": 50}])


@pytest.mark.parametrize(("module", "missing"), [("espeakng_loader", "espeakng-loader"), ("resvg_py", "resvg_py")])
def test_a_missing_package_says_what_to_install(monkeypatch, module, missing):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ResourceError, match=rf"{missing}.*pip install 'plait\[.*scenes\]'"):
        list(source_module.SceneSource(PREPARE, 0).read("train", 0, 1))


def test_some_documents_are_passages_of_text():
    prepare = PrepareConfig(documents=400, validation_documents=20, passages=0.25)
    source = source_module.SceneSource(prepare, 0, parts=["text", "image"])
    assert source.splits()["passages"] == 20
    train = list(source.read("train", 0, 400))
    alone = [d for d in train if "passage" in d.meta]
    assert 70 < len(alone) < 130 and all([key for key, _ in d.parts] == ["text"] for d in alone)
    plain = list(
        source_module.SceneSource(replace(prepare, passages=0.0), 0, parts=["text", "image"]).read("train", 0, 400)
    )
    pairs = [(a, b) for a, b in zip(train, plain) if "passage" not in a.meta]
    assert all(a.meta == b.meta and (a.parts[1][1] == b.parts[1][1]).all() for a, b in pairs)
    held = list(source.read("passages", 0, 20))
    texts = [d.parts[0][1] for d in (*alone, *held)]
    assert len(set(texts)) == len(texts) and min(map(len, texts)) >= 100
    assert not {d.meta["passage"] for d in alone} & {d.meta["passage"] for d in held}
    assert [d.meta for d in source.read("train", 130, 150)] == [d.meta for d in train[130:150]]
    assert all(not d.parts for d in source_module.SceneSource(prepare, 0, parts=["image"]).read("passages", 0, 5))
    with pytest.raises(ConfigError, match=r"prepare.passages: .* take a smaller share or fewer documents"):
        source_module.SceneSource(replace(prepare, documents=100_000, passages=0.9), 0)


SMALL = 64


def test_everyday_things_follow_the_written_rule():
    things = drawings.everyday(SMALL)
    assert len(things) == SMALL and drawings.everyday(20) == things[:20]
    assert all(c.group in drawings.EVERYDAY and 1 <= len(c.name.split()) <= 2 for c in things)
    assert all(with_article(c.name, c.group) != c.name for c in things)
    assert len({c.name.split()[-1] for c in things}) == len({c.family for c in things}) == SMALL
    assert {c.code for c in things} <= {c.code for c in drawings.all_concepts()}  # none has a twin under another name
    assert World(0, SMALL).train == World(1, SMALL).train == things  # whatever the seed


def test_a_small_world_never_trains_on_the_held_out_grounds():
    world = World(0, SMALL)
    for concept in world.train:
        held = world.held_out_grounds(concept)
        assert len(held) == NUM_HELD_OUT and held < set(visible_on(concept))
    for split in ("train", "seen", "unseen_combinations", "other_voice"):
        for scene in shown(split, 500, SMALL):
            assert all(scene.background not in world.held_out_grounds(c) for c in scene.concepts)
            assert all(scene.background in visible_on(c) for c in scene.concepts)
    assert World(1, SMALL).held_out_grounds(world.train[0]) != world.held_out_grounds(world.train[0])


def test_unseen_grounds_hold_singles_and_pairs_of_every_thing():
    world, scene_list = World(0, SMALL), shown("unseen_grounds", 500, SMALL)
    counts = [len(s.concepts) for s in scene_list]
    assert counts.count(1) == 300 and counts.count(2) == 200
    assert all(s.relation for s in scene_list if len(s.concepts) == 2)
    assert all(any(s.background in world.held_out_grounds(c) for c in s.concepts) for s in scene_list)
    assert {s.concepts[0].code for s in scene_list if len(s.concepts) == 1} <= {c.code for c in world.train}
    assert len({s.concepts[0].code for s in scene_list if len(s.concepts) == 1}) > SMALL * 0.9


def test_in_a_small_world_a_thing_has_one_place_and_one_size():
    places: dict[str | None, set] = {}
    for scene in shown("train", 300, SMALL):
        places.setdefault(scene.relation, set()).add((scene.centers, scene.extents))
    assert all(len(found) == 1 for found in places.values())
    (first, second), sizes = next(iter(places["left of"]))
    assert first[0] < second[0] and first[1] == second[1]
    assert sizes[0] > sizes[1]  # the image says which of the two its caption names first
    (first, second), _ = next(iter(places["above"]))
    assert first[1] < second[1] and first[0] == second[0]
    everywhere = {(s.centers, s.extents) for s in shown("train", 300, ALL) if len(s.concepts) == 1}
    assert len(everywhere) > 100


def test_a_small_world_is_a_source_of_scenes():
    source = source_module.SceneSource(replace(PREPARE, concepts=SMALL), 0, parts=["text", "image"])
    assert list(source.splits()) == ["train", "unseen_grounds", "seen", "unseen_combinations"]
    documents = list(source.read("unseen_grounds", 0, 40))
    images = [dict(d.parts)["image"] for d in documents]
    truths = source.truths
    assert truths.item_scores("image", images, [d.meta for d in documents]) == {"ground": [True] * 40}
    assert truths.chances["object"] == 1 / SMALL and len(truths.things()) > 1000
    wrong = [{**d.meta, "background": "none"} for d in documents]
    assert truths.item_scores("image", images, wrong) == {"ground": [False] * 40}


@pytest.mark.parametrize("count", [1, 5000])
def test_a_number_of_things_that_there_is_not_is_refused(count):
    with pytest.raises(ConfigError, match=r"prepare.concepts: \d+ is not allowed, it must be at (least|most) \d+"):
        source_module.SceneSource(PrepareConfig(concepts=count), 0)


def test_the_nearest_training_scene_shows_the_same_thing():
    truths = SceneTruths(World(0, SMALL))
    train = [s.meta() for s in shown("train", 2000, SMALL)]
    metas = [s.meta() for s in shown("unseen_grounds", 100, SMALL)]
    for meta, place in zip(metas, truths.nearest(metas, train), strict=True):
        near = train[place]
        assert near["objects"] == meta["objects"] or len(meta["objects"]) == 2
        assert {o["concept"] for o in near["objects"]} & {o["concept"] for o in meta["objects"]}
    assert truths.nearest(train[:50], train) == [train.index(meta) for meta in train[:50]]


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_ground_is_read_from_the_border(name):
    color = [int(BACKGROUNDS[name][i : i + 2], 16) for i in (1, 3, 5)]
    image = np.full((16, 16, 3), color, np.uint8)
    image[2:-2, 2:-2] = 7
    assert ground_of(image) == name


@pytest.mark.parametrize(("count", "seed"), [(64, 10), (20, 0), (5, 2)])
def test_small_worlds_are_drawn_whatever_the_seed(count, seed):
    """A thing that nothing may join stands alone, and leads no scene of two things that never meet in training."""
    world = World(seed, count)
    world.check()
    for split in ("train", *world.splits(spoken=True)):
        for index in range(2 * count):
            scene = world.scene(split, index)
            assert (scene.relation is not None) == (len(scene.concepts) == 2)
            if split == "unseen_combinations":
                assert len(scene.concepts) == 2 and not world.meets_in_training(*scene.concepts)


def test_a_world_without_pairs_to_hold_out_is_refused():
    with pytest.raises(ConfigError, match=r"^prepare\.concepts: 2 is not allowed with seed 0, as no two of its things"):
        source_module.SceneSource(replace(PREPARE, concepts=2), 0, parts=["text", "image"])
