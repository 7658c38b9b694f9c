"""What is measured of a run, and what its figures are called."""

from types import SimpleNamespace

import pytest
from helpers.fake_data import run_config

from plait.common.progress import QuietProgress
from plait.config.model import ModalityConfig, ModelConfig
from plait.evaluate import suite as suites
from plait.evaluate.judge import Found
from plait.evaluate.measures import mean_of
from plait.evaluate.suite import Suite
from plait.report.scores import paths

KINDS = {"text": "text", "view": "image", "scene3d": "scene3d", "motion": "motion"}
TASKS = ["text,view", "view,text", "text,scene3d", "scene3d,text without motion", "text,scene3d,motion",
         "scene3d,text,motion", "scene3d,motion,text"]  # fmt: skip


@pytest.fixture
def suite(monkeypatch) -> Suite:
    config = run_config("nowhere")
    config.model = ModelConfig(modalities={name: ModalityConfig(objective="next_token") for name in KINDS})
    config.data.tasks = dict.fromkeys(TASKS, 1.0)
    codecs = {name: SimpleNamespace(kind=kind, reads="") for name, kind in KINDS.items()}
    model = SimpleNamespace(config=SimpleNamespace(layout=SimpleNamespace(host="text")))
    suite = Suite(config, SimpleNamespace(codecs=codecs, model=model), QuietProgress())
    suite.__dict__["splits"] = ["new", "seen", "other"]
    monkeypatch.setattr(suite, "judges", lambda: dict.fromkeys(KINDS))
    monkeypatch.setattr(suite, "_free", dict)
    monkeypatch.setattr(suites, "open_sources", lambda config, split: [SimpleNamespace(split=split, folder="here")])
    return suite


def test_things_that_a_task_gives_together_are_one_path(suite):
    assert suite.together("text", "motion") == suite.together("scene3d", "motion") == ("text", "scene3d")
    assert suite.together("motion", "text") == ("scene3d", "motion") and suite.together("scene3d", "text") == (
        "scene3d",
    )
    assert suite.task_of("scene3d", "text") == "scene3d,text without motion" and not suite.task_of("motion", "view")
    assert suite.together("text", "scene3d") == ("text",) and suite.together("motion", "scene3d") == ("motion",)
    one_way = [path for path in suite.paths() if len(path) == 2]
    assert one_way == [("text", "text"), ("view", "text"), ("scene3d", "text"), ("motion", "text"), ("text", "view"),
                       ("text", "scene3d"), ("text", "motion")]  # fmt: skip


def test_names_of_figures(suite):
    names = {path: suite.prefix(path) for path in suite.paths()}
    expected = {("text", "scene3d"): "scene3d", ("text", "motion"): "motion", ("scene3d", "text"): "caption_scene3d",
                ("motion", "text"): "caption_motion", ("view", "text"): "caption", ("text", "view"): "view",
                ("text", "motion", "text"): "text_via_motion",
                ("motion", "text", "motion"): "motion_via_text"}  # fmt: skip
    assert {path: names[path] for path in expected} == expected
    figures = {f"{prefix}_object_accuracy": 0.5 for prefix in names.values()}
    read_back = {path: prefix for prefix, path in paths(figures, [*KINDS])}
    assert {path: read_back[path] for path in expected} == expected


def test_figures_are_of_the_first_split_that_has_such_documents(suite, monkeypatch):
    """Such as motions, which not every split has; round trips are measured once."""
    values, asked = {"new": 1.0, "seen": 2.0, "other": 3.0}, []

    def measured(path, source, judge, *, is_first):
        if "motion" in path and source.split == "new":
            return None
        asked.append((path, source.split, is_first))
        return Found({"error": mean_of([values[source.split]] * 2)})

    monkeypatch.setattr(suite, "measured", measured)
    figures = suite.made()
    assert (figures["scene3d_error"], figures["motion_error"], figures["motion_via_text_error"]) == (1, 2, 2)
    assert (
        figures["motion_error/seen"] == 2 and figures["motion_error/other"] == 3 and figures["scene3d_error/new"] == 1
    )
    assert "motion_error/new" not in figures and "motion_via_text_error/other" not in figures
    assert [(split, first) for path, split, first in asked if path == ("text", "motion")] == [
        ("seen", True), ("other", False)]  # fmt: skip
    suite.config.evaluate.every_split = False  # of others texts alone
    of_texts = ["answer", "caption", "caption_scene3d", "caption_motion"]
    assert {n for n in suite.made() if n.endswith("error/other")} == {f"{name}_error/other" for name in of_texts}
    suite.is_brief = True
    assert "motion_error" not in suite.made()
