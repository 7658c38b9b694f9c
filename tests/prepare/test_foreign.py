"""What is likely to be brought is recognised, and the line that is given converts it."""

import gzip
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
from helpers.fake_data import FakeImage, FakeOptions, FakeText
from helpers.manifests import open_source, read_all, write
from helpers.prepared import config_for

from plait.common.errors import DataError
from plait.prepare.formats import open_rows
from plait.prepare.raw import BrokenRow
from plait.prepare.stages import prepare

pytestmark = pytest.mark.usefixtures("fake_codecs")

ROW = {"parts": [{"text": "žluťoučký"}], "meta": {"a": 1}}
CODECS = {"text": FakeText(FakeOptions()), "image": FakeImage(FakeOptions())}


def refused(path) -> str:
    with pytest.raises(DataError) as error:
        read_all(path)
    assert "\n" not in str(error.value) and path.name in str(error.value)
    return str(error.value)


def convert(sentence: str, folder) -> None:
    """Run the line that a sentence ends with."""
    line = re.search(r"(?:convert it|unpack it): (.*)$", sentence)[1]
    program = line.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not here")
    if program == "python":
        line = line.replace("python", sys.executable, 1)
    subprocess.run(line, shell=True, check=True, cwd=folder)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes(f"{json.dumps(ROW, ensure_ascii=False)}\n".encode(encoding))
    sentence = refused(tmp_path / "a.jsonl")
    assert re.search(r"is UTF-(16|32)(LE|BE)? text, no manifest; convert it: iconv -f UTF", sentence)
    convert(sentence, tmp_path)
    (document,) = read_all(tmp_path / "a.manifest.jsonl")["train"]
    assert document.parts == [("text", "žluťoučký")]


def test_packed_files_and_files_of_other_programs(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("a.txt", "text")
    assert "is a zip archive" in refused(tmp_path / "b.zip")
    for name, first, text in (
        ("d.xlsx", "[Content_Types].xml", "an Office document, no manifest; export what it holds: tables as CSV"),
        ("d.pt", "archive/data.pkl", "a PyTorch file, whose pickle is never read, no manifest; write what it holds"),
        ("d.npz", "arr_0.npy", "a NumPy archive, no manifest; write what it holds"),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr(first, "text")
        assert text in refused(tmp_path / name) and "unpack" not in refused(tmp_path / name)
    sqlite3.connect(tmp_path / "c.db").execute("create table a (b)").connection.close()
    assert "is an SQLite database" in refused(tmp_path / "c.db")
    files = {
        "page.jsonl": (b"<!DOCTYPE html><html></html>", "an HTML page, which a server sent"),
        "lfs.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        "a.xz": (b"\xfd7zXZ\0" + bytes(30), "unxz -k"),
        "a.zst": (b"\x28\xb5\x2f\xfd" + bytes(30), "unzstd"),
        "a.npy": (b"\x93NUMPY\1\0" + bytes(30), "a NumPy array"),
        "a.pkl": (b"\x80\x04\x95" + bytes(30), "a Python pickle, which is never read"),
        "a.png": (b"\x89PNG\r\n\x1a\n" + bytes(30), "a manifest names such files"),
        "z.jsonl": (bytes(999), "nothing but zeros"),
    }
    for name, (data, text) in files.items():
        (tmp_path / name).write_bytes(data)
        assert text in refused(tmp_path / name), name


@pytest.mark.parametrize("spacing", [500, 1 << 22])
@pytest.mark.parametrize("streams", [1, 3])
def test_packed_lines_are_read_at_their_places(tmp_path, monkeypatch, spacing, streams):
    monkeypatch.setattr("plait.prepare.gzip_file._SPACING", spacing)
    monkeypatch.setattr("plait.prepare.gzip_file._MAX_POINTS", 8)
    monkeypatch.setattr("plait.prepare.gzip_file._BLOCK", 256)
    monkeypatch.setattr("plait.prepare.gzip_file._CHUNK", 64)
    rng = np.random.default_rng(0)
    rows = [{"parts": [{"text": str(rng.integers(0, 10**9, rng.integers(1, 30)))}]} for _ in range(90)]
    cuts = np.array_split(np.arange(90), streams)
    packed = [gzip.compress("".join(json.dumps(rows[i]) + "\n" for i in cut).encode()) for cut in cuts]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(packed) + bytes(70))
    source = open_source(tmp_path / "a.jsonl.gz")
    assert source.splits()["train"] == 90
    for start in (80, 3, 40, 0, 89):
        found = list(source.read("train", start, start + 5))
        assert [d.parts[0][1] for d in found] == [row["parts"][0]["text"] for row in rows[start : start + 5]]
    for data, text in ((packed[-1][:-20], "is cut short"), (packed[0][:60] + b"x" * 60, "is corrupt")):
        (tmp_path / "b.jsonl.gz").write_bytes(data)
        assert text in refused(tmp_path / "b.jsonl.gz")
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"PAR1" + bytes(99)))
    assert "is packed (gzip)" in refused(tmp_path / "c.gz")
    (tmp_path / "d.gz").write_bytes(gzip.compress(b"<html></html>"))
    assert "an HTML page" in refused(tmp_path / "d.gz")
    (tmp_path / "e.gz").write_bytes(gzip.compress(json.dumps(rows, indent=1).encode()))
    assert len(read_all(tmp_path / "e.gz")["train"]) == 90


@pytest.mark.parametrize("kind", ["feather", "csv", "tsv", "text"])
def test_tables_and_texts_are_converted_by_the_line_that_is_given(tmp_path, kind):
    table = {"text": ["one, two", "three"], "n": [1, 2]}
    path = tmp_path / f"a.{kind}"
    if kind == "feather":
        pyarrow.feather.write_feather(pa.table(table), path)
    elif kind == "text":
        path.write_text("one, two\n\nthree\n")
    else:
        path.write_text({"csv": 'n,text\n1,"one; two"\n2,three\n', "tsv": "text\tn\none, two\t1\nthree\t2\n"}[kind])
    convert(refused(path), tmp_path)
    made = tmp_path / ("a.manifest.jsonl" if kind == "text" else "a.parquet")
    found = read_all(made)["train"]
    assert [d.parts for d in found] == [[("text", "one; two" if kind == "csv" else "one, two")], [("text", "three")]]


ARRAYS = {
    "array in one line": json.dumps([ROW] * 3),
    "array": json.dumps([ROW] * 3, indent=2),
    "array with a mark": "\ufeff" + json.dumps([ROW] * 3, indent=1, ensure_ascii=False),
    "objects of several lines": "\n".join(json.dumps(ROW, indent=2) for _ in range(3)),
    "lines with a mark": "\ufeff" + "\n".join([json.dumps(ROW)] * 3),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("block", [7, 1 << 18])
def test_json_of_every_layout_is_read(tmp_path, monkeypatch, kind, block):
    monkeypatch.setattr("plait.prepare.json_values._BLOCK", block)
    (tmp_path / "a.json").write_text(ARRAYS[kind], encoding="utf-8")
    rows = read_all(tmp_path / "a.json")["train"]
    assert [(d.parts, d.meta) for d in rows] == [([("text", "žluťoučký")], {"a": 1})] * 3


def test_many_rows_with_one_reason_are_one_reason(tmp_path):
    """The reasons that are shown differ: the line that converts a file stands there once."""
    rows = [{"image": "a.png", "caption": "a"}] * 5 + [{"parts": 7}]
    path = write(tmp_path, rows)
    with pytest.raises(DataError) as error:
        prepare(config_for(tmp_path / "data", path, ("text",), validation_share=0.0))
    assert str(error.value).count("convert the file") == 1 and "line 1: the row" in str(error.value)
    assert "line 6: the row has 7 as 'parts'" in str(error.value)


def test_a_broken_item_of_an_array_is_one_broken_row(tmp_path):
    items = [json.dumps(ROW), '{"parts": [{"text": "a" "b"}]}', '"[}]{"', "7", json.dumps(ROW), '{"parts": [']
    (tmp_path / "a.json").write_text("[" + ",\n".join(items))
    source = open_source(tmp_path / "a.json")
    rows = list(source.read("train", 0, 9))
    assert [isinstance(row, BrokenRow) for row in rows] == [False, True, True, True, False, True]
    assert [row.line for row in rows if isinstance(row, BrokenRow)] == [2, 3, 4, 6]
    assert list(source.read("train", 4, 5)) == rows[4:5]


def test_a_key_that_comes_twice_is_a_broken_row(tmp_path):
    lines = [b'{"parts": [{"text": "a"}], "parts": [{"text": "b"}]}', b'{"parts": [{"text": "a", "text": "b"}]}']
    reasons = [row.reason for row in read_all(write(tmp_path, lines))["train"]]
    assert reasons == ["the key 'parts' comes twice in one mapping", "the key 'text' comes twice in one mapping"]


FOREIGN = {
    "llava": ({"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                              {"from": "gpt", "value": "A fox."}]},
              [{"image": "a.png"}, {"text": "What is it?"}, {"text": "A fox."}], {"id": "7"}),
    "llava without an image": ({"conversations": [{"from": "human", "value": "Hi"}]}, [{"text": "Hi"}], {}),
    "chat": ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
             [{"text": "Hi"}, {"text": "Ho"}], {}),
    "chat with images": ({"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}]}]},
        [{"image": "a.png"}, {"text": "What?"}], {}),
    "image folder": ({"file_name": "a.png", "text": "fox", "n": 3}, [{"image": "a.png"}, {"text": "fox"}], {"n": 3}),
    "sound folder": ({"file_name": "a.wav", "transcription": "hello"}, [{"audio": "a.wav"}, {"text": "hello"}], {}),
    "nemo": ({"audio_filepath": "a.wav", "duration": 1.5, "text": "hello"},
             [{"audio": "a.wav"}, {"text": "hello"}], {"duration": 1.5}),
    "columns": ({"image": "a.png", "caption": "a fox"}, [{"image": "a.png"}, {"text": "a fox"}], {}),
    "text alone": ({"text": "words"}, [{"text": "words"}], {}),
    "alpaca": ({"instruction": "Say hi", "input": "", "output": "hi"}, [{"text": "Say hi"}, {"text": "hi"}], {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("as_array", [False, True])
def test_rows_of_other_tools_are_converted_by_the_line_that_is_given(tmp_path, kind, as_array):
    row, parts, meta = FOREIGN[kind]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps([row, row]) if as_array else f"{json.dumps(row)}\n" * 2)
    found = read_all(path, codecs=CODECS)["train"]
    reason = found[0].reason
    assert len(found) == 2 and '{"parts": [{"text": "..."}, {"image": "a.png"}]}' in reason, reason
    if shutil.which("jq") is None:
        pytest.skip("jq is not here")
    program = re.search(r"convert the file: (jq -c '.*') OLD > NEW.jsonl$", reason)[1]
    output = subprocess.run(f"{program} {path}", shell=True, check=True, capture_output=True, text=True).stdout
    assert [json.loads(line) for line in output.splitlines()] == [{"parts": parts, "meta": meta}] * 2


def test_whole_files_of_other_tools(tmp_path):
    coco = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "a fox"}]}
    kohya = {"a.png": {"caption": "a fox"}}
    for value, name in ((coco, "COCO"), (kohya, "kohya")):
        (tmp_path / "a.json").write_text(json.dumps(value, indent=1))
        (row,) = read_all(tmp_path / "a.json")["train"]
        assert name in row.reason
        program = re.search(r"convert the file: (jq -c '.*') OLD", row.reason)[1]
        if shutil.which("jq"):
            output = subprocess.run(f"{program} {tmp_path}/a.json", shell=True, check=True, capture_output=True).stdout
            assert json.loads(output) == {"parts": [{"image": "a.png"}, {"text": "a fox"}]}
    (row,) = read_all(write(tmp_path, [{"url": "https://a/b.jpg", "caption": "a fox"}]))["train"]
    assert "img2dataset" in row.reason


def test_a_folder_of_images_and_texts_is_read_as_its_tar(media):
    folder = media / "10_fox"
    (folder / "more").mkdir(parents=True)
    for i, where in enumerate((folder, folder, folder / "more")):
        shutil.copy(media / "good.png", where / f"{i}.PNG")
        (where / f"{i}.txt").write_text(f"fox {i}")
    (folder / "9.txt").write_text("fox 9")
    (folder / "notes").write_text("no suffix")
    subprocess.run(["tar", "cf", media / "10_fox.tar", "-C", folder, "."], check=True)
    mine, theirs = (read_all(place)["train"] for place in (folder, media / "10_fox.tar"))
    texts = [[value for key, value in d.parts if key == "text"] for d in mine]
    assert texts == [["fox 0"], ["fox 1"], ["fox 9"], ["fox 2"]] and [len(d.parts) for d in mine] == [2, 2, 1, 2]
    assert sorted(d.meta["key"] for d in mine) == sorted(d.meta["key"] for d in theirs)
    rows = open_rows(str(folder), {}, ["text", "image"])
    assert len(list(rows.rows())) == 4 and rows.account["members"]["left out"] == {"files without a suffix": 1}


def test_a_folder_says_what_is_wrong_with_its_files(media):
    folder = media / "fox"
    folder.mkdir()
    with pytest.raises(DataError, match="it holds no image, recording or text"):
        read_all(folder)
    for name in ("a.txt", "a.TXT", "c.txt"):
        (folder / name).write_text("a fox")
    os.symlink("/etc/hostname", folder / "b.txt")
    reasons = [getattr(row, "reason", "") for row in read_all(folder)["train"]]
    assert "differ in small and capital letters" in reasons[0] and "'b.txt' is a link" in reasons[1]
    assert reasons[2] == ""
    (folder / "metadata.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"it holds 'metadata\.jsonl', name that"):
        read_all(folder)


def test_a_link_to_itself_is_one_broken_row(media):
    os.symlink("loop.png", media / "loop.png")
    rows = [{"parts": [{"image": "good.png"}]}] * 50 + [{"parts": [{"image": "loop.png"}]}]
    found = read_all(write(media, rows))["train"]
    assert [row.line for row in found if isinstance(row, BrokenRow)] == [51]
    assert found[50].reason == "part 1 (image): 'loop.png' is a link that leads to itself"
    os.symlink("self.jsonl", media / "self.jsonl")
    with pytest.raises(DataError, match="is a link to nothing, or to itself"):
        read_all(media / "self.jsonl")


def test_whatever_a_codec_raises_is_a_broken_row(media):
    class Odd(FakeText):
        def read(self, value, base):
            raise KeyError("what")

    found = read_all(write(media, [{"parts": [{"text": "a"}]}]), codecs={"text": Odd(FakeOptions())})["train"]
    assert found[0].reason == "part 1 (text): it cannot be read (KeyError: 'what')"


@pytest.mark.parametrize("rows", [[ROW], [{"image": "a.png", "caption": "a"}]])
def test_rows_within_a_mapping_are_found(tmp_path, rows):
    (tmp_path / "a.jsonl").write_text(json.dumps({"version": 1, "data": rows}))
    (row,) = read_all(tmp_path / "a.jsonl")["train"]
    assert "a mapping with the rows under 'data'" in row.reason
    if shutil.which("jq"):
        program = re.search(r"convert the file: (jq -c '.*') OLD", row.reason)[1]
        found = subprocess.run(f"{program} a.jsonl", shell=True, check=True, cwd=tmp_path, capture_output=True).stdout
        assert [list(part) for part in json.loads(found)["parts"]] == (
            [["text"]] if rows == [ROW] else [["image"], ["text"]]
        )


def test_a_reason_gives_no_line_that_changes_nothing_and_lists_no_thousand_names(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"url": "https://a.b/c.jpg", "width": 3}))
    (row,) = read_all(tmp_path / "a.jsonl")["train"]
    assert "img2dataset downloads to tars; name those" in row.reason and "jq" not in row.reason
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "url": "https://a.b/page.html"}))  # of C4's form
    (row,) = read_all(tmp_path / "a.jsonl")["train"]
    assert "a row of columns: text;" in row.reason and "jq" in row.reason
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(500):
            tar.addfile(tarfile.TarInfo(f"2024.{i:03d}.png"))
    (row,) = read_all(tmp_path / "a.tar")["train"]
    assert "488 more: a sample's name ends at its first dot" in row.reason and len(row.reason) < 1000
