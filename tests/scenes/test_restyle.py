"""The same scenes by other drawings: names and splits stay, images differ, and judges compare with the new ones."""

import json

import numpy as np
import pytest
from helpers.iconify import write_package

from plait.common.errors import ConfigError
from plait.config.run import PrepareConfig
from plait.scenes.drawings import everyday
from plait.scenes.restyle import Drawings
from plait.scenes.source import SceneSource


@pytest.fixture
def folder(tmp_path):
    return write_package(tmp_path)


def source(drawings="", concepts=64) -> SceneSource:
    prepare = PrepareConfig(documents=20, validation_documents=5, concepts=concepts, drawings=str(drawings))
    return SceneSource(prepare, 0, parts=("text", "image"))


def test_the_same_scenes_in_other_drawings(folder):
    plain, other = source(), source(folder)
    assert plain.splits() == other.splits()
    for split in plain.splits():
        for a, b in zip(plain.read(split, 0, 5), other.read(split, 0, 5), strict=True):
            (caption, image), (same, restyled) = ((p[1] for p in d.parts) for d in (a, b))
            assert caption == same and a.meta == b.meta
            assert image.shape == restyled.shape and not np.array_equal(image, restyled)
    assert other.credit == "Drawings: Bars by A (u), licence MIT (v)." and "OpenMoji" in plain.credit


def test_what_is_placed_and_compared_is_the_new_drawing(folder):
    thing = everyday(64)[9]
    drawn = Drawings(folder).of(thing)
    assert (drawn.name, drawn.code, drawn.family) == (thing.name, thing.code, thing.family)
    left, top, width, height = drawn.box  # in units of a canvas of 72, measured on 32 pixels
    np.testing.assert_allclose([left, top, width, height], [12, 24, 48, 24], atol=3)
    truths = source(folder).truths
    assert set(truths.things()) == {c.code for c in everyday(64)}
    reference, before = (t.reference("image", thing.code, 32) for t in (truths, source().truths))
    assert (reference[16, 16] == [27, 128, 228]).all() and not np.array_equal(reference, before)


def test_ids_of_one_drawing_are_its_own(folder):
    icons = json.loads((folder / "icons.json").read_text())
    body = (
        '<linearGradient id="svgIDa"><stop stop-color="red"/></linearGradient><path fill="url(#svgIDa)" d="M0 0h9v9z"/>'
    )
    icons["icons"] = {name: {"body": body} for name in icons["icons"]}
    (folder / "icons.json").write_text(json.dumps(icons))
    first, second = (Drawings(folder).of(thing).svg for thing in everyday(64)[:2])
    assert first.count(f"svgID{everyday(64)[0].code}-a") == 2 and "svgIDa" not in first + second


def test_what_is_no_set_of_drawings(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"prepare\.drawings: '.*none' holds no icons\.json"):
        source(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"has no drawing of \d+ things of this world, such as"):
        source(folder, concepts=80)
    (folder / "chars.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not a mapping"):
        source(folder)
