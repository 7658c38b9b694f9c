"""`plait generate --prompts`: the folders that scorers read, the same ones after a stop, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from helpers.fitted import speech_codec
from helpers.served import SIDE, small_pipeline
from PIL import Image

from plait.cli import main
from plait.common.errors import DataError
from plait.run.prompt_files import read_prompts

LINES = ['{"tag": "single_object", "include": [{"class": "fox", "count": 1}], "prompt": "a photo of a fox"}',
         "", '{"prompt": "an owl", "note": "é"}', '{"prompt": "a fox and an owl"}']  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    fitting = tmp_path_factory.mktemp("fitting")
    small_pipeline(fitting, chat=False, speech=speech_codec(fitting)).save_pretrained(fitting / "small")
    return str(fitting / "small")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (folder / "geneval.jsonl").write_text("\n".join(LINES), encoding="utf-8")
    assert main([*words(model, folder / "geneval.jsonl", folder / "out")]) == 0
    return folder


def words(model, file, out, *more):
    return ["generate", model, "--prompts", str(file), "--output", "image", "--count", "3", "--out", str(out), *more]


def pixels(folder):
    return {str(p.relative_to(folder)): np.asarray(Image.open(p)) for p in sorted(folder.glob("*/samples/*.png"))}


def test_the_folders_are_what_scorers_read(whole):
    out = whole / "out"
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["00000", "00001", "00002"]
    kept = [json.loads((out / f"{n:05d}" / "metadata.jsonl").read_text()) for n in range(3)]
    assert kept == [json.loads(line) for line in LINES if line]
    found = pixels(out)
    assert len(found) == 9 and all(p.shape == (SIDE, SIDE, 3) for p in found.values())
    assert len({p.tobytes() for p in found.values()}) == 9, "each sample has noise of its own"


def test_what_was_stopped_goes_on_with_the_same_samples(model, whole, capsys):
    out, before = whole / "out", pixels(whole / "out")
    shutil.rmtree(out / "00001")
    assert main(words(model, whole / "geneval.jsonl", out)) == 0
    assert "3 prompts" in (said := capsys.readouterr().out) and "(2 were there)" in said
    after = pixels(out)
    assert after.keys() == before.keys()
    assert all(np.abs(after[k].astype(int) - before[k].astype(int)).max() <= 1 for k in before)


def test_plain_lines(model, tmp_path):
    (tmp_path / "list.txt").write_text("a fox\n\nan owl\n")
    assert [p.text for p in read_prompts(tmp_path / "list.txt")] == ["a fox", "an owl"]
    assert main(["generate", model, "--prompts", str(tmp_path / "list.txt"), "--output", "speech", "--out",
                 str(tmp_path / "said")]) == 0  # fmt: skip
    assert len(list((tmp_path / "said").glob("*/samples/0000.wav"))) == 2
    assert json.loads((tmp_path / "said/00001/metadata.jsonl").read_text()) == {"prompt": "an owl"}


def test_what_is_refused(model, whole, tmp_path, capsys):
    file = whole / "geneval.jsonl"
    for more, code, sentence in (
        (words(model, file, whole / "out", "--seed", "3"), 2, "was begun with other prompts or settings, name another"),
        (words(model, file, whole), 2, "must be an empty folder, or one that the same command began"),
        (words(model, tmp_path / "none", tmp_path / "o"), 3, "none' cannot be read (No such file or directory)"),
        (words(model, file, tmp_path / "o", "--text", "a"), 2, "--prompts: "),
        (["generate", model, "--prompts", str(file)], 2, "it must be given with --out and --output"),
        (
            [*words(model, file, tmp_path / "o")[:-4], "--out", str(tmp_path / "o"), "--output", "film"],
            2,
            "--output: 'film'",
        ),
    ):
        assert main(more) == code, more
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1, said
    for text, sentence in (('{"prompt": 3}', "line 1 has the prompt 3, it must be text"),
                           ('a\n{"prompt": ', "line 2 is not JSON"), ("\n", "holds no prompt")):  # fmt: skip
        (tmp_path / "bad").write_text(text)
        with pytest.raises(DataError, match=sentence):
            read_prompts(tmp_path / "bad")
    (tmp_path / "bad").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_prompts(tmp_path / "bad")
