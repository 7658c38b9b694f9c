"""`plait rollout`: what is printed of each episode, the page that shows them, and what is refused."""

import re
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest

from plait.cli import main
from plait.common.errors import ConfigError
from plait.run import rollout as module


class Doors:
    """An environment in which every second episode succeeds."""

    def __init__(self):
        self.seen = []

    def watch(self, act, *, tasks, episodes, seed, videos, show):
        for task in tasks or ["open", "close"]:
            for number in range(seed, seed + episodes):
                (chunk,) = act([[{"text": task, "number": number}]])
                if show:
                    show(np.zeros((8, 8, 3), np.uint8), f"{task} {number}")
                self.seen.append((task, number, chunk.tolist(), videos))
                yield task, number % 2 == 0, f"{task}, start {number}"


@pytest.fixture
def doors(monkeypatch) -> Doors:
    found = Doors()
    config = SimpleNamespace(name="doors", data=SimpleNamespace(path="data"), prepare=None)
    monkeypatch.setattr(module, "run_config", lambda run: config)
    monkeypatch.setattr(module, "load_run", lambda config, device: SimpleNamespace(codecs={}))
    monkeypatch.setattr(module, "remade", lambda *args: SimpleNamespace(trials=found))
    chunks = lambda observations, seed: [np.full(2, seed)] * len(observations)  # noqa: E731
    monkeypatch.setattr(module, "Actor", lambda pipeline: SimpleNamespace(chunks=chunks))
    return found


def test_each_episode_is_said_and_counted(doors, capsys, tmp_path):
    assert main(["rollout", "run", "--episodes", "3", "--task", "open", "--seed", "4", "--videos", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["open, start 4", "open, start 5", "open, start 6", "2 of 3 succeed: 67% (95% interval 21% to 94%)"]
    assert [row[:3] for row in doors.seen] == [("open", number, [4, 4]) for number in (4, 5, 6)]
    assert {row[3] for row in doors.seen} == {tmp_path}


def test_a_page_shows_them_while_they_last(doors, capsys, monkeypatch):
    pages = []
    show = module.LivePage.show

    def look(page, image, said):
        show(page, image, said)
        with urllib.request.urlopen(f"{page.address}said", timeout=10) as answer:
            pages.append(answer.read().decode())

    monkeypatch.setattr(module.LivePage, "show", look)
    assert main(["rollout", "run", "--render"]) == 0
    assert re.match(r"live: http://127\.0\.0\.1:\d+/", capsys.readouterr().out)
    assert pages == ["open 0", "close 0"]


def test_a_run_without_an_environment_is_refused(doors, monkeypatch, capsys, tmp_path):
    for source in (None, SimpleNamespace(trials=None)):
        monkeypatch.setattr(module, "remade", lambda *args, source=source: source)
        assert main(["rollout", "run"]) == 2
        assert "come from no environment, prepare.source must be one such as metaworld" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"--videos: .* is not allowed, it must be a folder"):
        module.rollout("run", videos=str(tmp_path / "file"))
