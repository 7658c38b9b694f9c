"""plait generate --chat: one question, a file of messages, lines that are typed; the answer is printed alone."""

import json
from types import SimpleNamespace

import pytest

from plait.cli import main
from plait.run import load as loading

CODECS = {"text": SimpleNamespace(kind="text", key="text"), "camera": SimpleNamespace(kind="image", key="image")}


class Echo:
    """A pipeline that answers with what it was asked, and how often."""

    def __init__(self):
        self.codecs, self.asked, self.settings = CODECS, [], []
        layout = SimpleNamespace(host="text")
        self.model = SimpleNamespace(config=SimpleNamespace(layout=layout, modalities={}))
        self.config = SimpleNamespace(sampling={})

    def chat(self, messages, output, **settings):
        self.asked.append(json.loads(json.dumps(messages)))
        self.settings.append({"output": output} | settings)
        text = f"answer {len(self.asked)}"
        return SimpleNamespace(text=text, message={"role": "assistant", "content": text}, codecs=CODECS,
                               output=[("text", text)])  # fmt: skip


@pytest.fixture
def pipeline(monkeypatch) -> Echo:
    echo = Echo()
    monkeypatch.setattr(loading, "load", lambda run, **settings: echo)
    return echo


def question(text: str, *more: dict) -> dict:
    return {"role": "user", "content": [*more, {"type": "text", "text": text}]}


def test_one_question(pipeline, capsys):
    assert main(["generate", "run", "--chat", "What is it?", "--seed", "3", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == "answer 1\n"
    assert pipeline.asked == [[question("What is it?")]]
    assert pipeline.settings[0] | {"grids": 0} == {
        "output": "text", "seed": 3, "sampling": {}, "max_tokens": {"text": 9, "camera": 9}, "grids": 0}  # fmt: skip


def test_a_question_about_files(pipeline):
    """A part is named by its key or by its modality, as without --chat."""
    assert (
        main(["generate", "run", "--image", "a.png", "--part", "camera=b.png", "--chat=-1?", "--output", "camera"]) == 0
    )
    images = [{"type": "image", "image": name} for name in ("a.png", "b.png")]
    assert pipeline.asked == [[question("-1?", *images)]] and pipeline.settings[0]["output"] == "camera"


def test_lines_are_a_conversation_up_to_an_empty_one(pipeline, capsys, monkeypatch):
    for lines, count in ((["Hi", "Who?", "", "no more"], 2), (["Hi", "Who?"], 2), ([], 0)):
        pipeline.asked.clear()
        left = iter(lines)

        def typed(prompt, left=left):
            assert prompt == "> "
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", typed)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        assert main(["generate", "run", "--chat", "--image", "a.png"]) == 0
        assert len(pipeline.asked) == count
        if count:
            first = question("Hi", {"type": "image", "image": "a.png"})
            assert pipeline.asked[1] == [first, {"role": "assistant", "content": "answer 1"}, question("Who?")]
    said = capsys.readouterr()
    assert said.out == "answer 1\nanswer 2\n" * 2 and "an empty line or Ctrl-D ends" in said.err


def test_a_file_of_messages(pipeline, tmp_path, capsys):
    messages = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    (tmp_path / "m.json").write_text(json.dumps(messages))
    assert main(["generate", "run", "--chat", str(tmp_path / "m.json")]) == 0
    assert pipeline.asked == [messages] and pipeline.settings[0]["base"] == tmp_path
    (tmp_path / "b.json").write_text("{")
    for words, sentence in (
        ([str(tmp_path / "none.json")], "--chat: there is no file"),
        ([str(tmp_path / "b.json")], "holds no messages in JSON"),
        ([str(tmp_path / "m.json"), "--image", "a.png"], "says all that is given, leave out the other parts"),
        (["Hi", "--count", "2"], "--chat gives one answer, leave out --count"),
    ):
        assert main(["generate", "run", "--chat", *words]) in (2, 3)
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1


def test_an_answer_with_media_is_saved(pipeline, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("plait.run.steps.save_generated", lambda samples, out, also: saved.append((samples, out)))
    pipeline.chat = lambda messages, output, **settings: SimpleNamespace(
        output=[("camera", 7)], codecs=CODECS, message={}, text=""
    )
    assert main(["generate", "run", "--chat", "Draw", "--out", str(tmp_path)]) == 0
    assert saved[0][1] == str(tmp_path) and saved[0][0][0].output == [("camera", 7)]
