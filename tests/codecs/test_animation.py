"""Motions as GLB and GIF: the keyframes are the motion's poses, and three.js loads the files as they are meant."""

import base64
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.codecs.animation import frames_of
from plait.codecs.meshes import write_scene
from plait.codecs.motions import EXTENTS, POSITION, MotionCodec, rotations
from plait.common.errors import DataError

trimesh = pytest.importorskip("trimesh")
SIZE = 16
Z_UP = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # from y up
TYPES = {5121: "u1", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def scene() -> np.ndarray:
    """Return cells of two blocks, a red one on the left and a blue one on the right."""
    cells = np.zeros((SIZE, SIZE, SIZE, 4), np.uint8)
    cells[1:6, 4:10, 0:7] = (220, 30, 20, 255)
    cells[9:15, 6:9, 0:3] = (20, 40, 220, 255)
    return cells


def motion(bodies: int = 2, steps: int = 24) -> np.ndarray:
    """Return a motion of the blocks: one slides and tips over, the other flies off and spins more than once."""
    numbers = np.zeros((steps, 2, 15), np.float32)
    for body, (low, high) in enumerate((((1, 4, 0), (6, 10, 7)), ((9, 6, 0), (15, 9, 3)))[:bodies]):
        numbers[:, body, POSITION] = (np.add(low, high) / 2 - (SIZE / 2, SIZE / 2, 0)) / SIZE
        numbers[:, body, EXTENTS] = np.subtract(high, low) / SIZE
        for step in range(steps):
            angle = (0.06 if body == 0 else 0.4) * step
            turn = trimesh.transformations.rotation_matrix(angle, [(1, 0, 0), (1, 2, 3)][body])[:3, :3]
            numbers[step, body, 3:9] = turn[:, :2].T.ravel()
            numbers[step, body, POSITION] += (0.01 * step, 0, 0.02 * step * body)
    return numbers


def codec() -> MotionCodec:
    return MotionCodec.from_options({})


def parsed(path: Path) -> tuple[dict, bytes]:
    """Return the JSON and the buffer of a GLB."""
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    assert data[:4] == b"glTF" and len(data) == int.from_bytes(data[8:12], "little")
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def values_of(tree: dict, buffer: bytes, number: int) -> np.ndarray:
    accessor = tree["accessors"][number]
    view = tree["bufferViews"][accessor["bufferView"]]
    start, width = view["byteOffset"] + accessor.get("byteOffset", 0), WIDTHS[accessor["type"]]
    kind = np.dtype(TYPES[accessor["componentType"]])
    found = np.frombuffer(buffer, kind, accessor["count"] * width, start).reshape(-1, width)
    assert np.allclose(found.min(0), accessor["min"]) and np.allclose(found.max(0), accessor["max"])
    return found


def keyframes(path: Path) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Return times and values of each node and of what moves of it."""
    tree, buffer = parsed(path)
    (animation,) = tree["animations"]
    found = {}
    for channel in animation["channels"]:
        sampler, target = animation["samplers"][channel["sampler"]], channel["target"]
        assert sampler["interpolation"] == "LINEAR" and "matrix" not in tree["nodes"][target["node"]]
        times, values = (values_of(tree, buffer, sampler[name]) for name in ("input", "output"))
        found[tree["nodes"][target["node"]]["name"], target["path"]] = times[:, 0], values
    return found


def matrices(quaternions: np.ndarray) -> np.ndarray:
    """Return the rotation matrices of quaternions x, y, z, w."""
    return np.array([trimesh.transformations.quaternion_matrix(q)[:3, :3] for q in quaternions[:, [3, 0, 1, 2]]])


def check_poses(frames: dict, item: np.ndarray) -> None:
    for body in range(2):
        times, places = frames[f"body{body}", "translation"]
        _, turns = frames[f"body{body}", "rotation"]
        assert np.allclose(times, np.arange(24) / 20)
        assert abs(places @ Z_UP.T - item[:, body, POSITION]).max() < 1e-5
        assert abs(Z_UP @ matrices(turns) @ Z_UP.T - rotations(item)[:, body]).max() < 1e-5
        assert (np.einsum("ti,ti->t", turns[1:], turns[:-1]) > 0).all(), "no jump to the other sign"


@pytest.mark.parametrize("others", [(), (("text", "two blocks"), ("scene3d", scene()))])
def test_keyframes_are_the_poses(tmp_path, others):
    item = motion()
    codec().write_among(item, tmp_path / "m.glb", others)
    check_poses(keyframes(tmp_path / "m.glb"), item)
    loaded = trimesh.load_scene(tmp_path / "m.glb")
    assert set(loaded.geometry) == {"body0", "body1"}
    for body in range(2):  # at the first step each thing is where its box is, y up
        middle, extents = item[0, body, POSITION] @ Z_UP, np.abs(item[0, body, EXTENTS] @ Z_UP)
        bounds = loaded.geometry[f"body{body}"].copy().apply_transform(loaded.graph[f"body{body}"][0]).bounds
        assert np.allclose(bounds, [middle - extents / 2, middle + extents / 2], atol=1e-5)


def test_one_body_or_none(tmp_path):
    codec().write(motion(bodies=1), tmp_path / "one.glb")
    assert {name for name, _ in keyframes(tmp_path / "one.glb")} == {"body0"}
    codec().write(motion(bodies=0), tmp_path / "none.glb")
    tree, _ = parsed(tmp_path / "none.glb")
    assert "animations" not in tree and "meshes" not in tree
    codec().write(motion(bodies=0), tmp_path / "none.gif")
    with pytest.raises(DataError, match="must be float32"):
        codec().write(motion()[:3], tmp_path / "short.glb")


def test_npz_stays_the_format_that_is_read(tmp_path):
    item = motion()
    codec().write_among(item, tmp_path / "m.npz", [("scene3d", scene())])
    assert np.array_equal(codec().read("m.npz", tmp_path), item)


def test_frames_show_the_bodies_move():
    """The scene's red and blue at first, as its picture has them; boxes where there is no scene."""
    first, *_, last = frames_of(motion(), scene(), size=48)
    reds, blues = ([np.argwhere(frame[..., c].astype(int) - frame[..., 2 - c] > 60) for frame in (first, last)]
                   for c in (0, 2))  # fmt: skip
    assert all(len(found) > 20 for found in (*reds, *blues))
    assert blues[1].mean(0)[0] < blues[0].mean(0)[0] - 5, "it flies up"
    assert reds[0].mean(0)[1] < blues[0].mean(0)[1]
    boxes = frames_of(motion(), size=48)
    assert boxes[0].shape == (48, 48, 3) and len({frame.tobytes() for frame in boxes}) == 24


def test_a_gif_plays_at_the_motions_speed(tmp_path, monkeypatch):
    monkeypatch.setattr("plait.codecs.animation.frames_of", lambda *given: frames_of(*given, size=64))
    codec().write_among(motion(), tmp_path / "m.gif", [("scene3d", scene())])
    with Image.open(tmp_path / "m.gif") as image:
        assert image.size == (64, 64) and image.n_frames == 24 and image.info["loop"] == 0
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            durations.append(image.info["duration"])
    assert durations == [50] * 23 + [1000]


@pytest.fixture(scope="module")
def three(browser, tmp_path_factory):
    """A page with three.js and its GLTFLoader, as trimesh brings them, and nothing drawn: `read(base64)` parses."""
    packed = Path(trimesh.__file__).parent / "resources/templates/viewer.zip"
    template = zipfile.ZipFile(packed).read("viewer.html.template").decode()
    library = template.split("<script>")[1].split("</script>")[0]
    page = tmp_path_factory.mktemp("three") / "page.html"
    page.write_text("<!doctype html><script>" + library.removesuffix("init();") + "</script><script>" + READ)
    browser.open(page)
    assert browser.run("typeof THREE.GLTFLoader") == "function"
    return browser


READ = """
const read = text => new Promise((done, failed) => {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  new THREE.GLTFLoader().parse(bytes.buffer, "", ({scene, animations}) => {
    const box = new THREE.Box3().setFromObject(scene), meshes = [];
    scene.traverse(node => { if (node.isMesh) meshes.push(
      [node.material.metalness, node.material.map ? node.material.map.image.width : 0]); });
    done({low: box.min.toArray(), high: box.max.toArray(), meshes,
          tracks: animations.flatMap(a => a.tracks.map(t => [t.name, [...t.times], [...t.values]]))});
  }, failed);
});
</script>"""


def read(browser, path: Path) -> dict:
    return browser.run(f"read('{base64.b64encode(path.read_bytes()).decode()}')")


def test_three_js_loads_a_motion(three, tmp_path):
    item = motion()
    codec().write_among(item, tmp_path / "m.glb", [("scene3d", scene())])
    loaded = read(three, tmp_path / "m.glb")
    names = {"position": "translation", "quaternion": "rotation"}
    frames = {}
    for name, times, values in loaded["tracks"]:
        node, what = name.split(".")
        frames[node, names[what]] = np.array(times), np.array(values).reshape(len(times), -1)
    check_poses(frames, item)
    assert loaded["meshes"] == [[0, 2], [0, 2]] and three.problems() == []


def test_three_js_loads_a_scene(three, tmp_path):
    write_scene(scene(), tmp_path / "s.glb")
    loaded = read(three, tmp_path / "s.glb")
    assert np.allclose(loaded["low"], (-7 / 16, 0, -2 / 16)) and np.allclose(loaded["high"], (7 / 16, 7 / 16, 4 / 16))
    assert loaded["meshes"] == [[0, 4]] and loaded["tracks"] == [] and three.problems() == []
