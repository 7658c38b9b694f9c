"""Voxels and meshes: what is written comes back, what cannot be read is said, and the autoencoder learns."""

import json
import re
import shlex

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from plait.cli import main
from plait.codecs import load_codec
from plait.codecs.meshes import faces_of, mesh_of, read_scene
from plait.codecs.voxels import (
    VoxelCodec,
    VoxelOptions,
    cells,
    colour_psnr,
    cut,
    iou,
    joined,
    unit,
)
from plait.common.errors import ConfigError, DataError

trimesh = pytest.importorskip("trimesh")
SIZE = 16
SMALL = VoxelOptions(size=SIZE, width=64, depth=1, steps=200, batch_size=64, learning_rate=5e-3)


def box(rng: np.random.Generator) -> np.ndarray:
    """Return an L of two boxes on the middle of the floor, as wide as the cube, in two colours."""
    scene = np.zeros((SIZE, SIZE, SIZE, 4), np.uint8)
    depth, height, cut = rng.integers(2, 5), rng.integers(6, SIZE), rng.integers(3, SIZE - 3)
    first, second = rng.integers(0, 256, (2, 3))
    front = (SIZE - depth) // 2
    scene[:, front : front + depth, 0:2] = (*first, 255)
    scene[:cut, front : front + depth, 2:height] = (*second, 255)
    return scene


def boxes(count: int, seed: int = 0) -> list[np.ndarray]:
    return [box(np.random.default_rng((seed, i))) for i in range(count)]


def hollow(scene: np.ndarray) -> np.ndarray:
    """Return a scene without the cells that are covered on all sides: no surface shows them."""
    filled = np.pad(scene[..., 3] > 0, 1)
    covered = np.logical_and.reduce([np.roll(filled, shift, axis) for axis in range(3) for shift in (1, -1)])
    return scene * ~(covered & filled)[1:-1, 1:-1, 1:-1, None]


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".npz"])
def test_what_is_written_comes_back(tmp_path, suffix):
    codec = VoxelCodec(SMALL)
    for i, scene in enumerate(boxes(3)):
        codec.write(scene, tmp_path / f"{i}{suffix}")
        again = codec.read(f"{i}{suffix}", tmp_path)
        expected = scene if suffix == ".npz" else hollow(scene)
        assert iou(again, expected) == 1.0, i
        if suffix != ".obj":  # whose colours are of vertices, between those of the faces beside
            assert colour_psnr(again, expected) > 40


def test_a_small_thing_in_the_air_comes_back_where_it_was(tmp_path):
    """GLB says so by a mark; without it, or where another program moved what is marked, a mesh is made to fit."""
    codec, scene = VoxelCodec(SMALL), np.zeros((SIZE, SIZE, SIZE, 4), np.uint8)
    scene[2:5, 9:11, 6:8] = (200, 30, 30, 255)
    codec.write(scene, tmp_path / "small.glb")
    assert (codec.read("small.glb", tmp_path)[..., 3] == hollow(scene)[..., 3]).all()
    mesh = trimesh.load_scene(tmp_path / "small.glb").to_mesh()
    moved = {"unmarked": mesh.copy(), "outside": mesh.copy()}
    moved["unmarked"].metadata.clear()
    moved["outside"].metadata["plait_cube"] = True
    moved["outside"].apply_scale(9)
    for name, other in moved.items():
        other.export(tmp_path / f"{name}.glb")
        filled = np.argwhere(codec.read(f"{name}.glb", tmp_path)[..., 3])
        assert filled[:, 0].min() == 0 and filled[:, 0].max() == SIZE - 1 and filled[:, 2].min() == 0, name


@pytest.mark.parametrize("suffix", [".glb", *VoxelCodec.formats])
def test_an_empty_scene_is_written(tmp_path, suffix):
    VoxelCodec(SMALL).write(np.zeros((SIZE, SIZE, SIZE, 4), np.uint8), tmp_path / f"empty{suffix}")
    assert (tmp_path / f"empty{suffix}").is_file()


def test_faces_look_outward():
    """A closed surface of outward faces has the volume of its cells."""
    for scene in boxes(4):
        mesh = mesh_of(scene, y_up=False)
        mesh.merge_vertices(merge_norm=True, merge_tex=True)
        assert mesh.volume * SIZE**3 == pytest.approx((scene[..., 3] > 0).sum())
        assert mesh.bounds[0][2] == 0 and len(faces_of(scene)[1]) * 2 == len(mesh.faces)
    up = mesh_of(boxes(1)[0], y_up=True)
    assert up.volume > 0 and up.bounds[0][1] == 0  # a GLB stands on y = 0


def test_a_gltf_stands_upright(tmp_path):
    """A pole of 1 by 1 by 4, along y as glTF has it, is as high as the cube in z; colours of its texture come along."""
    pole = trimesh.creation.box((1, 4, 1))
    pole.visual.face_colors = (200, 30, 10, 255)
    pole.export(tmp_path / "pole.glb")
    scene = read_scene("pole.glb", tmp_path, SIZE)
    filled = np.argwhere(scene[..., 3] > 0)
    assert (np.ptp(filled, axis=0) + 1).tolist() == [4, 4, 16] and filled[:, 2].min() == 0
    assert abs(scene[scene[..., 3] > 0][:, :3].astype(int) - (200, 30, 10)).max() <= 1


def write_textured(folder, texture: str = "halves.png"):
    """Write a board that stands, one half red and the other blue by its texture, and a green ball beside it."""
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[:, :4], colours[:, 4:] = (250, 0, 0), (0, 0, 250)
    Image.fromarray(colours).save(folder / "halves.png")
    (folder / "board.mtl").write_text(f"newmtl wood\nmap_Kd {texture}\nnewmtl paint\nKd 0 1 0\n")
    (folder / "board.obj").write_text("""mtllib board.mtl
v 0 0 0
v 4 0 0
v 4 4 0
v 0 4 0
v 0 0 2
v 1 0 2
v 1 1 2
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl wood
f 1/1 2/2 3/3
f 1/1 3/3 4/4
usemtl paint
f 5 6 7
""")


def test_textures_and_materials_give_the_colours(tmp_path):
    write_textured(tmp_path)
    scene = read_scene("board.obj", tmp_path, SIZE)
    filled = np.argwhere(scene[..., 3] > 0)
    left, right = (scene[x, :, 8][scene[x, :, 8, 3] > 0][0, :3] for x in (2, 13))
    assert left[0] > 200 > 50 > left[2] and right[2] > 200 > 50 > right[0]
    green = scene[filled[filled[:, 1].argmin()][0], filled[:, 1].min(), 0]
    assert green[1] > 200 and green[0] < 50  # what has y up looks along -y, so that the nearer part is in front
    write_textured(tmp_path, "lost.png")
    with pytest.raises(DataError, match=r"'board.obj' names the file 'lost.png', which is not beside it"):
        read_scene("board.obj", tmp_path, SIZE)


def test_cutting_and_back():
    scenes = np.stack(boxes(3))
    for scene in scenes:
        cubes = cut(scene, 4)
        assert cubes.shape == (64, 4, 4, 4, 4) and np.array_equal(joined(cubes), scene)
        assert np.array_equal(cubes[16 + 2 * 4 + 3], scene[4:8, 8:12, 12:16])
    logits = unit(torch.from_numpy(scenes)) - torch.tensor([0, 0, 0, 0.5])
    assert np.array_equal(cells(logits), scenes)


def test_figures_by_hand():
    a, b = (np.zeros((2, 2, 2, 4), np.uint8) for _ in range(2))
    assert iou(a, b) == 1.0 and colour_psnr(a, b) == 0.0
    a[0, 0] = (10, 20, 30, 255)
    b[0, 0, 0] = (10, 20, 60, 255)
    assert iou(a, b) == 0.5 and colour_psnr(a, b) == pytest.approx(10 * np.log10(255**2 / 300))
    assert colour_psnr(a, a) == 100


def test_it_learns_and_is_saved(tmp_path):
    codec, scenes = VoxelCodec(SMALL), boxes(200)
    codec.fit(scenes, minutes=1, seed=0, folder=tmp_path, progress=lambda share, text: None)
    held = boxes(12, seed=1)
    quality = codec.quality(held)
    assert quality["iou"] > 0.5 and quality["colour_psnr"] > 12 and 0.3 < quality["latent_std"] < 3
    encoded = codec.encode(held)
    assert {e.latents.shape for e in encoded} == {(8, 64)} and {e.grid for e in encoded} == {(2, 2, 2)}
    (tmp_path / "saved").mkdir()
    codec.save_pretrained(tmp_path / "saved")
    again = load_codec(tmp_path / "saved")
    for ours, theirs in zip(encoded, again.encode(held), strict=True):
        assert np.array_equal(ours.latents, theirs.latents)
    assert all(np.array_equal(a, b) for a, b in zip(codec.decode(encoded), again.decode(encoded), strict=True))
    with pytest.raises(DataError, match=r"cells \[8, 8, 8, 4\] are not allowed, they must be \[16, 16, 16, 4\]"):
        codec.encode([np.zeros((8, 8, 8, 4), np.uint8)])
    with pytest.raises(DataError, match=r"the grid \(4, 4\) is not allowed, it must be \(2, 2, 2\)"):
        codec.decode([encoded[0].__class__(latents=np.zeros((8, 64), np.float32), grid=(4, 4))])


def test_a_token_says_its_colour_in_three_numbers(tmp_path):
    """Cells that are all lighter by the same differ in these numbers alone, and come back lighter by as much."""
    codec, scenes = VoxelCodec(SMALL), [np.minimum(scene, (180, 180, 180, 255)).astype(np.uint8) for scene in boxes(20)]
    codec.fit(scenes, minutes=1, seed=0, folder=tmp_path, progress=lambda share, text: None)
    lighter = [scene + (scene[..., 3:] > 0) * np.array([40, 20, 60, 0], np.uint8) for scene in scenes]
    for ours, theirs in zip(codec.encode(scenes), codec.encode(lighter), strict=True):
        assert np.allclose(ours.latents[:, 3:], theirs.latents[:, 3:], atol=1e-4)
        filled = abs(theirs.latents[:, :3] - ours.latents[:, :3]).max(1) > 0
        more = codec.scaling.restore(torch.from_numpy(theirs.latents - ours.latents))[filled, :3]
        more = more - torch.tensor(codec.scaling.mean[:3])
        assert torch.allclose(more * 255, torch.tensor([40.0, 20, 60]).expand_as(more), atol=1e-2)
    first, second = codec.decode(codec.encode(scenes[:1])), codec.decode(codec.encode(lighter[:1]))
    both = (first[0][..., 3] > 0) & (second[0][..., 3] > 0)
    difference = second[0][both][:, :3].astype(int) - first[0][both][:, :3]
    assert abs(np.median(difference, axis=0) - (40, 20, 60)).max() <= 1


def test_settings_that_do_not_fit():
    for values, said in (({"size": 20}, "size: 20 .* a multiple of token_size"), ({"width": 0}, "width: 0"),
                         ({"latent_channels": 3}, "latent_channels: 3 .* at least 4"),
                         ({"colour_scale": 0.0}, "colour_scale: 0"), ({"kl_weight": -1.0}, "kl_weight: -1"),
                         ({"depth": 0}, "depth: 0")):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"^codec_options\.{said}"):
            VoxelCodec.from_options(values)


def write_bad(folder):
    cloud = trimesh.PointCloud(np.random.default_rng(0).normal(size=(9, 3)))
    cloud.export(folder / "points.ply")
    flat = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    flat.export(folder / "flat.ply")
    broken = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    broken += "element face 1\nproperty list uchar int vertex_indices\nend_header\nnan 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    (folder / "nan.ply").write_text(broken)
    (folder / "text.glb").write_text("no mesh at all")
    np.savez(folder / "small.npz", cells=np.zeros((8, 8, 8, 4), np.uint8))
    np.savez(folder / "other.npz", voxels=np.zeros(3))
    (folder / "scene.fbx").write_text("")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("points.ply", "has no faces"), ("flat.ply", "have no area"), ("nan.ply", "not numbers"),
        ("text.glb", "cannot be read as a mesh"), ("small.npz", r"they must be uint8 \[16, 16, 16, 4\]"),
        ("other.npz", "no array 'cells'"), ("scene.fbx", r"its suffix must be one of \.glb"),
        ("none.glb", "is not there"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, name, said):
    write_bad(tmp_path)
    with pytest.raises(DataError, match=rf"^scene3d: .*{said}"):
        read_scene(name, tmp_path, SIZE)


def test_a_mesh_of_too_many_triangles(tmp_path, monkeypatch):
    trimesh.creation.icosphere(subdivisions=3).export(tmp_path / "ball.stl")
    monkeypatch.setattr("plait.codecs.meshes.MOST_TRIANGLES", 1000)
    with pytest.raises(DataError, match=r"'ball.stl' has 1,280 triangles, at most 1,000 are allowed"):
        read_scene("ball.stl", tmp_path, SIZE)


def test_meshes_of_ones_own(tmp_path, monkeypatch):
    """docs/worlds.md: a folder of meshes and captions, prepared, trained, and made as GLB that other programs load."""
    rows = []
    (tmp_path / "meshes").mkdir()
    for i, scene in enumerate(boxes(20)):
        path = f"meshes/{i}.glb" if i else "meshes/chair.glb"
        VoxelCodec(SMALL).write(scene, tmp_path / path)
        rows.append({"parts": [{"text": f"an L of height {i}"}, {"scene3d": path}]})
    rows.append({"parts": [{"text": "a broken one"}, {"scene3d": "none.glb"}]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = (ROOT / "docs" / "worlds.md").read_text()
    (config,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "meshes.yaml").write_text(config)
    *_, commands = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    small = ["--model.width=32", "--model.num_layers=1", "--model.num_heads=1", "--train.minutes=0", "--train.steps=3",
             "--prepare.max_broken_share=0.1", "--data.batch_tokens=256"]  # fmt: skip
    small += [f"--model.modalities.scene3d.codec_options.{name}={value}" for name, value in
              (("size", 16), ("width", 16), ("depth", 1), ("steps", 5))]  # fmt: skip
    for command in commands.strip().splitlines():
        program, name, *words = shlex.split(command)
        assert program == "plait"
        assert main([name, *words, *(small if name in ("prepare", "train") else ["--steps", "2"])]) == 0, command
    assert "none.glb" in (tmp_path / "runs/meshes/data/broken.jsonl").read_text()
    (made,) = (tmp_path / "made/scene3d").glob("*.glb")
    assert made.stat().st_size > 0 and trimesh.load_scene(made) is not None
