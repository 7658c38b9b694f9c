"""The furniture's world: what is read of the package, what documents show and say, and what training never sees."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from helpers.furniture import NAMES, small_package

from plait.codecs.motions import COLOUR, MotionCodec
from plait.codecs.voxels import VoxelCodec
from plait.common.errors import ConfigError, ResourceError
from plait.config.run import PrepareConfig
from plait.worlds import furniture, world
from plait.worlds.source import WorldSource, open_worlds
from plait.worlds.truths import caption_scores, read_caption

pytest.importorskip("trimesh")
pytest.importorskip("mujoco")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The small package, and a cache of its own."""
    folder = tmp_path_factory.mktemp("furniture")
    with small_package(folder):
        yield folder


def source(count=14, documents=200, **more):
    prepare = PrepareConfig("worlds", concepts=count, documents=documents, validation_documents=60, image_size=32)
    return WorldSource(prepare, 3, parts=("text", "scene3d", "image", "motion"), moving=True, **more)


def test_models_are_read_once_and_stand_upright(package):
    models = furniture.catalogue()
    assert {m.name for m in models} == {*NAMES} and {m.creator for m in models} == {"Maker 0", "Maker 1"}
    whole = [m for m in models if furniture.is_readable(m)]
    assert len(whole) == len(models) - 1  # one names a texture that is not there
    for model in whole[:4]:
        surface = furniture.surface_of(model)
        extents = np.array(model.size) / max(model.size)
        assert np.allclose(surface.extents, extents, atol=0.02) and abs(surface.points[:, 2].min()) < 1e-3
        assert np.allclose(np.linalg.norm(surface.normals, axis=1), 1, atol=0.01)
        top = surface.points[surface.normals[:, 2] > 0.9, 2].max()
        assert top == pytest.approx(extents[2], abs=0.01)
    kept = next((package / "cache").rglob("surfaces/*/*.npz"))
    furniture.surface_of.cache_clear()
    before = furniture.surface_of(whole[0])
    kept_of_it = furniture._kept(whole[0])
    kept_of_it.write_bytes(b"cut short")
    furniture.surface_of.cache_clear()
    assert np.array_equal(furniture.surface_of(whole[0]).points, before.points) and kept.is_file()


@pytest.mark.parametrize(
    ("given", "said"), [("none.deb", "cannot be read as a Debian package"), (".", "has no catalogue")]
)
def test_a_package_that_cannot_be_had(package, tmp_path, monkeypatch, given, said):
    monkeypatch.setenv(furniture.FILE, str(tmp_path / given))
    furniture.folder.cache_clear()
    with pytest.raises(ResourceError, match=said):
        furniture.folder()
    monkeypatch.delenv(furniture.FILE)
    monkeypatch.setattr(furniture, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match=r"'sweethome3d-furniture' \(120 MB\) cannot be fetched .* set PLAIT_FURN"):
        furniture.folder()
    furniture.folder.cache_clear()


def test_a_catalogue_that_is_damaged(package, tmp_path, monkeypatch):
    (tmp_path / "Broken.sh3f").write_bytes(b"no zip at all")
    monkeypatch.setenv(furniture.FILE, str(tmp_path))
    furniture.folder.cache_clear()
    furniture.catalogue.cache_clear()
    with pytest.raises(ResourceError, match=r"^furniture: '.*Broken.sh3f' cannot be read as a catalogue \(File is not"):
        furniture.catalogue()
    furniture.folder.cache_clear()


@pytest.mark.skipif(not shutil.which("ar"), reason="a Debian package is made by ar")
def test_a_debian_package_is_read(package, tmp_path, monkeypatch):
    root = tmp_path / "usr/share/sweethome3d/furniture"
    shutil.copytree(package / "package", root)
    subprocess.run(["tar", "-cJf", "data.tar.xz", "./usr"], cwd=tmp_path, check=True)
    (tmp_path / "control").write_text("Package: sweethome3d-furniture\nVersion: 1\n")
    subprocess.run(["tar", "-cJf", "control.tar.xz", "./control"], cwd=tmp_path, check=True)
    (tmp_path / "debian-binary").write_text("2.0\n")
    subprocess.run(["ar", "r", "it.deb", "debian-binary", "control.tar.xz", "data.tar.xz"], cwd=tmp_path, check=True,
                   capture_output=True)  # fmt: skip
    monkeypatch.setenv(furniture.FILE, str(tmp_path / "it.deb"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    furniture.folder.cache_clear()
    kept = furniture.folder()
    assert {p.name for p in kept.iterdir()} == {"Library0.sh3f", "Library1.sh3f"}
    assert kept == tmp_path / "cache/plait/furniture/catalogues"
    furniture.folder.cache_clear()


def test_documents_depend_on_their_number_alone(package):
    a, b = source(), source()
    whole = list(a.read("train", 0, 12))
    for i in (7, 3):
        (again,) = b.read("train", i, i + 1)
        assert again.meta == whole[i].meta
        for (key, mine), (other, theirs) in zip(whole[i].parts, again.parts, strict=True):
            assert key == other and np.array_equal(mine, theirs)
    kinds = {tuple(key for key, _ in document.parts) for document in whole}
    assert kinds <= {("text", "scene3d", "image"), ("text", "scene3d", "motion")}


def test_what_is_held_out_never_occurs_in_training(package):
    made = source()
    its = made.world
    shown = [its.scene("train", i, moving=True) for i in range(150)]
    names = {t.model.name for s in shown for t in s.things}
    assert {t.model for s in shown if s.motion is None for t in s.things} == {*its.train}
    assert names <= {m.name for m in its.movers} and {*its.train} < {*its.movers} and its.unseen
    assert not {*its.movers} & {*its.unseen}
    for s in shown:
        assert all(t.colour not in its.held_out_colours(t.model) for t in s.things)
        if s.relation:
            assert its.meets_in_training(s.things[0].model, s.things[1].model)
    held = [its.scene("unseen_combinations", i, moving=True) for i in range(60)]
    assert sum(len(s.things) == 2 for s in held) in range(10, 25)
    for s in held:
        assert s.motion is None
        if s.relation:
            assert not its.meets_in_training(s.things[0].model, s.things[1].model)
        else:
            assert s.things[0].colour in its.held_out_colours(s.things[0].model)
    moving = [its.scene("unseen_motions", i, moving=True) for i in range(8)]
    assert {bool(t.called) for s in moving for t in s.things} == {True, False}
    assert all(len({t.colour for t in s.things}) == len(s.things) for s in moving)
    assert all(s.motion is not None and {t.model for t in s.things} <= {*its.unseen} for s in moving)


def test_what_a_scene_says_is_what_it_shows(package):
    made = source()
    for i in range(40):
        scene = made.world.scene("train", i, moving=True)
        cells = world.cells_of(scene)
        filled = cells[..., 3] > 0
        assert filled[:, :, 0].any() or scene.motion is not None  # it stands on the floor
        said = read_caption(scene.caption)
        assert said.names == tuple(t.called or t.model.name for t in scene.things)
        assert said.colours == tuple(t.colour for t in scene.things)
        assert (said.size, said.relation) == (scene.size, scene.relation)
        for thing in scene.things:
            low, box = np.array(thing.low), np.array(world.extents_of(thing.model, thing.longest))
            inside = filled[tuple(slice(a, a + b) for a, b in zip(low, box, strict=True))]
            assert (low >= 0).all() and (low + box <= world.SIZE).all(), scene.caption
            assert all(inside.any((1, 2))) and all(inside.any((0, 1)))  # it fills its box from end to end
        if scene.motion is not None:
            start = scene.motion[0, 0, :3] - scene.motion[0, 0, 9:12] / 2 + (0.5, 0.5, 0)
            assert np.allclose(start * world.SIZE, scene.things[0].low, atol=0.02)
            told = [world.COLOURS[thing.colour] for thing in scene.things]
            assert np.allclose(scene.motion[:, : len(told), COLOUR] * 255, told, atol=1e-3)
            assert not scene.motion[:, len(told) :].any()


def test_captions_are_scored_by_what_they_say():
    truths = ["a large red jug", "a red jug on a blue oven", "a red jug falls to the floor"]
    right = caption_scores(truths, truths)
    assert all(hit is not False for hits in right.values() for hit in hits)
    assert caption_scores(["a blue thing jumps"], ["a red thing jumps"])["colour"] == [False]
    assert "object" not in caption_scores(["a blue thing jumps"], ["a red thing jumps"])
    wrong = caption_scores(["a small red jug", "a green jug behind a blue oven", "a jug"], truths)
    assert wrong["object"] == [True, True, True] and wrong["colour"] == [True, False, False]
    assert wrong["size"] == [False, None, None] and wrong["relation"] == [None, False, None]
    assert wrong["event"] == [None, None, False] and wrong["exact"] == [False, None, None]
    assert wrong["exact_several"] == [None, False, None] and wrong["exact_event"] == [None, None, False]


def test_truths_of_real_scenes(package):
    made = source()
    scenes = [made.world.scene("unseen_combinations", i, moving=False) for i in range(30)]
    items, metas = [world.cells_of(s) for s in scenes], [s.meta() for s in scenes]
    hits = made.truths.item_scores("scene3d", items, metas)["colour"]
    assert [hit is None for hit in hits] == [bool(s.relation) for s in scenes] and any(hits)
    assert all(hit is None or hit for hit in hits)
    assert made.truths.item_scores("image", items, metas) == {}
    others = [made.world.scene("train", i, moving=True).meta() for i in range(100)]
    for meta, i in zip(metas, made.truths.nearest(metas, others), strict=True):
        assert {o["name"] for o in others[i]["objects"]} & {o["name"] for o in meta["objects"]}
    phrases, places = made.truths.openings(metas, 10, 0)
    assert [phrases[p] for p in places[:1]] and len(phrases) >= 10


def test_a_world_of_too_many_things(package):
    with pytest.raises(ConfigError, match=r"^prepare\.concepts: 19 is not allowed, it must be a number below 19"):
        source(count=19)
    assert os.environ[furniture.FILE]


def test_codecs_of_other_parts(package):
    class Other:
        key, name = "audio", "speech_tokens"

    with pytest.raises(ConfigError, match=r"reads the parts 'audio', the furniture's world has text, scene3d, image"):
        open_worlds(PrepareConfig(source="worlds"), 0, {"speech": Other()}, None)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [("voxels", {"size": 16}, r"size: 16 is not allowed, it must be 32, as in the furniture's world"),
     ("motion", {"steps": 12}, "steps: 12 is not allowed, it must be 24"),
     ("motion", {"bodies": 3}, "bodies: 3 is not allowed, it must be 2")],
)  # fmt: skip
def test_codecs_of_other_shapes(package, name, options, said):
    codec = (VoxelCodec if name == "voxels" else MotionCodec).from_options(options)
    with pytest.raises(ConfigError, match=rf"^model\.modalities\.mine\.codec_options\.{said}"):
        open_worlds(PrepareConfig(source="worlds"), 0, {"mine": codec}, None)
