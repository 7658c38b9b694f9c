"""The quickstart of worlds, tiny, on a small package of furniture: from models to figures, files and a page."""

import json

import numpy as np
import pytest
from helpers.furniture import small_package
from PIL import Image

from plait.cli import main
from plait.codecs.motions import read_motion

trimesh = pytest.importorskip("trimesh")
mujoco = pytest.importorskip("mujoco")
pytestmark = pytest.mark.slow

TINY = ["--prepare.concepts", "12", "--prepare.documents", "160", "--prepare.validation_documents", "24",
        "--prepare.codec_documents", "100", "--prepare.codec_minutes", "0.1", "--prepare.shard_documents", "64",
        "--prepare.image_size", "32", "--model.modalities.view.codec_options.size", "32",
        "--model.modalities.view.codec_options.components", "32", "--model.width", "32", "--model.num_layers", "1",
        "--model.num_heads", "1", "--model.ffn_width", "64", "--train.minutes", "0", "--train.steps", "8",
        "--train.device", "cpu", "--evaluate.captions", "6", "--evaluate.images", "12", "--evaluate.items", "12",
        "--evaluate.pairs", "6", "--generate.sampling.scene3d.steps", "3", "--generate.sampling.view.steps", "3",
        "--generate.sampling.motion.steps", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    out = folder / "run"
    with small_package(folder):
        assert main(["quickstart", "--setting", "worlds", "--out", str(out), *TINY]) == 0
        yield out


def test_the_summary_has_every_figure(run):
    summary = json.loads((run / "summary.json").read_text())
    for name in ("scene3d_codec_iou", "scene3d_object_accuracy", "scene3d_object_codec", "scene3d_colour_accuracy",
                 "scene3d_stands", "scene3d_loose_voxels", "caption_scene3d_object_accuracy", "motion_event_accuracy",
                 "motion_event_chance", "motion_error", "motion_error_still", "motion_error_constant",
                 "scene3d_from_view_match", "view_from_scene3d_match"):  # fmt: skip
        assert np.isfinite(summary[name]), name
    assert summary["motion_event_originals"] == 1 and summary["scene3d_object_originals"] > 0.5
    assert summary["motion_error_codec"] < 1e-2 < summary["motion_error_still"]
    assert "motion_error/unseen_motions" in summary and "motion_error/unseen_combinations" not in summary


def test_the_page_turns_scenes_and_says_whose_they_are(run):
    page = (run / "report.html").read_text()
    assert page.count("data-cells=") > 5 and page.count("data-motion=") > 2
    assert "Three.js Authors" in page and "CC BY 3.0" in page and "distance from the document" in page


def test_what_is_made_is_written_in_every_format(run, tmp_path):
    command = ["generate", str(run), "--text", "a large red anvil", "--output", "scene3d", "--out", str(tmp_path / "a")]
    assert main([*command, "--also", "ply,xml,npz"]) == 0
    made = tmp_path / "a" / "scene3d" / "0000-output0.glb"
    assert trimesh.load_scene(made) is not None and made.with_suffix(".ply").stat().st_size > 0
    mujoco.MjModel.from_xml_path(str(made.with_suffix(".xml")))
    given = ["--part", f"scene3d={made.with_suffix('.npz')}", "--text", "a red anvil falls to the floor"]
    command = ["generate", str(run), *given, "--output", "motion", "--also", "glb,gif", "--out", str(tmp_path / "b")]
    assert main(command) == 0
    motion = tmp_path / "b" / "motion" / "0000-output0.npz"
    assert read_motion(motion.name, motion.parent, (24, 2, 15)).shape == (24, 2, 15)
    assert Image.open(motion.with_suffix(".gif")).n_frames > 1 and motion.with_suffix(".glb").stat().st_size > 0
