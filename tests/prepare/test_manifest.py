"""Manifests: every kind of row, good and broken, from JSONL and Parquet."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fake_data import CODEC_NAMES
from helpers.manifests import CODECS, open_source, read_all, write

from plait.common.errors import DataError
from plait.prepare import manifest
from plait.prepare.formats import open_rows
from plait.prepare.raw import BrokenRow, RawDocument


def test_any_parts_in_any_order_and_language(media):
    rows = [
        {"parts": [{"audio": "good.wav"}, {"text": "žluťoučký kůň 馬 🐎"}, {"image": "good.png"}, {"text": "b"}]},
        {"parts": [{"text": "only text"}], "meta": {"from": "me"}},
    ]
    first, second = read_all(write(media, rows))["train"]
    assert [key for key, _ in first.parts] == ["audio", "text", "image", "text"]
    assert first.parts[1][1] == "žluťoučký kůň 馬 🐎"
    assert first.parts[2][1].shape == (20, 30, 3) and first.parts[0][1].shape == (1000,)
    assert second.meta == {"from": "me"} and first.meta == {}


BROKEN = {
    "missing file": ({"parts": [{"image": "gone.png"}]}, "part 1 (image): there is no file 'gone.png'"),
    "truncated image": ({"parts": [{"text": "a"}, {"image": "cut.png"}]}, "part 2 (image): 'cut.png' is not an image"),
    "not an image": ({"parts": [{"image": "text.png"}]}, "part 1 (image): 'text.png' is not an image"),
    "empty audio": ({"parts": [{"audio": "empty.wav"}]}, "part 1 (audio): 'empty.wav' has no samples"),
    "audio missing": ({"parts": [{"audio": "gone.ogg"}]}, "part 1 (audio): 'gone.ogg' is not audio"),
    "wrong type": ({"parts": [{"text": 5}]}, "part 1 (text): 5 is not text"),
    "file of a wrong type": ({"parts": [{"image": 5}]}, "part 1 (image)"),
    "bytes of a wrong type": ({"parts": [{"text": {"bytes": "a"}}]}, "part 1 (text): {'bytes': 'a'} is not text"),
    "unknown key": ({"parts": [{"imgae": "a.png"}]}, "part 1: unknown name 'imgae', allowed: audio, image, text; did"),
    "no parts": ({"parts": []}, "the row has no parts"),
    "parts missing": ({"meta": {}}, "the row has no 'parts'"),
    "parts misspelt": ({"part": []}, "unknown field 'part', allowed: parts, meta; did you mean 'parts'?"),
    "parts of a wrong type": ({"parts": "a.png"}, "the row has \"a.png\" as 'parts'"),
    "two keys": ({"parts": [{"text": "a", "image": "good.png"}]}, "part 1 is {"),
    "bare text": ({"parts": ["a"]}, 'part 1 is "a"'),
    "meta of a wrong type": ({"parts": [{"text": "a"}], "meta": [1]}, "'meta' is [1]"),
    "not a mapping": ([1, 2], "the row is [1, 2]"),
    "bad UTF-8": (b'{"parts": [{"text": "\xff"}]}', "the line is not UTF-8 (byte 22 is 0xff)"),
    "bad JSON": (b'{"parts": [', "the line is not JSON"),
    "too deep": (b"[" * 100_000, "the line is not JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_rows_have_a_line_and_a_reason(media, kind):
    row, reason = BROKEN[kind]
    good = {"parts": [{"text": "good"}]}
    found = read_all(write(media, [good, b"", b"  ", row, good]))["train"]
    assert [type(f) for f in found] == [RawDocument, BrokenRow, RawDocument]
    assert found[1].line == 4
    assert found[1].reason.startswith(reason) and "\n" not in found[1].reason


def test_parts_of_other_modalities_are_handed_on_unread(media, monkeypatch):
    monkeypatch.setattr(manifest, "CODECS", CODEC_NAMES)
    monkeypatch.setattr("plait.codecs.CODECS", CODEC_NAMES)
    manifest.registered_keys.cache_clear()
    rows = [{"parts": [{"audio": "gone.wav"}, {"text": "a"}]}, {"parts": [{"audio": "gone.wav"}]}]
    first, second = read_all(write(media, rows), codecs={"text": CODECS["text"]})["train"]
    manifest.registered_keys.cache_clear()
    assert first.parts == [("audio", "gone.wav"), ("text", "a")]
    assert second.reason == "none of its parts (audio) is of a kind that this model reads (text)"


def test_unusable_manifests(tmp_path):
    with pytest.raises(DataError, match="there is no manifest"):
        read_all(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="no file, but a folder"):
        read_all(tmp_path)
    for rows in ([], [b"", b" "]):
        assert read_all(write(tmp_path, rows)) == {"train": [], "validation": []}
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match="is not a Parquet file"):
        read_all(tmp_path / "cut.parquet")


def test_splits_depend_on_content_alone(tmp_path):
    rows = [{"parts": [{"text": f"row {i}"}], "meta": {"i": i}} for i in range(400)]
    rows += rows[:50]
    forward = read_all(write(tmp_path, rows), 0.25)
    assert 70 < len(forward["validation"]) < 150
    backward = read_all(write(tmp_path, rows[::-1]), 0.25)
    renamed = read_all(write(tmp_path, [r | {"meta": {}} for r in rows]), 0.25)
    texts = [sorted(d.parts[0][1] for d in found["validation"]) for found in (forward, backward, renamed)]
    assert texts[0] == texts[1] == texts[2]
    assert not set(texts[0]) & {d.parts[0][1] for d in forward["train"]}  # equal rows never part


def test_reading_does_not_depend_on_what_was_read(tmp_path):
    path = write(tmp_path, [{"parts": [{"text": f"row {i}"}]} for i in range(50)])
    source = open_source(path, validation_share=0.2)
    rows = source.splits()["train"]
    whole = list(source.read("train", 0, rows))
    assert list(source.read("train", 10, 20)) == whole[10:20]
    assert list(source.read("train", rows - 1, rows)) == whole[-1:]
    assert list(source.read("train", 5, rows + 9)) == whole[5:]


def parquet(folder, columns, **settings):
    pq.write_table(pa.table(columns), folder / "manifest.parquet", **settings)
    return folder / "manifest.parquet"


@pytest.mark.parametrize("as_json", [False, True])
def test_parquet_reads_as_jsonl(media, as_json):
    rows = [
        {"parts": [{"text": "a"}, {"image": "good.png"}], "meta": {"i": 0}},
        {"parts": [{"image": "cut.png"}], "meta": {"i": 1}},
        {"parts": [{"audio": "good.wav"}, {"text": "b"}], "meta": {"i": 2}},
        {"parts": [], "meta": {"i": 3}},
    ] * 3
    columns = {name: [json.dumps(r[name]) if as_json else r[name] for r in rows] for name in ("parts", "meta")}
    from_parquet = read_all(parquet(media, columns, row_group_size=5), 0.3)
    from_lines = read_all(write(media, rows), 0.3)
    for split, expected in from_lines.items():
        assert len(from_parquet[split]) == len(expected)
        for a, b in zip(from_parquet[split], expected, strict=True):
            assert type(a) is type(b)
            if isinstance(a, BrokenRow):
                assert a == b
            else:
                assert a.meta == b.meta and [k for k, _ in a.parts] == [k for k, _ in b.parts]
                assert all(np.array_equal(x, y) for (_, x), (_, y) in zip(a.parts, b.parts, strict=True))


def test_parquet_with_bad_rows_and_columns(media):
    bad = pa.array([b'[{"text": "\xff"}]', b"{", None, b'[{"text": "a"}]'], pa.binary()).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, bad.buffers())
    found = read_all(parquet(media, {"parts": text}))["train"]
    assert [f.line for f in found[:3]] == [1, 2, 3]
    assert [f.reason.split(" (")[0] for f in found[:3]] == [
        "the row is not UTF-8", "the line is not JSON", "the row has no 'parts', it needs a list of parts"]  # fmt: skip
    assert found[3].parts == [("text", "a")]
    with pytest.raises(DataError, match="did you mean 'parts'"):
        read_all(parquet(media, {"part": ["[]"]}))


@pytest.mark.parametrize("columns", [{}, {"caption": "text"}])
def test_a_column_whose_name_has_two_lines_is_named_in_one(tmp_path, columns):
    place = str(parquet(tmp_path, {"par\nts": ["a"]}))
    with pytest.raises(DataError) as error:
        open_rows(place, columns, ("text",))
    assert "par\\nts" in str(error.value) and "\n" not in str(error.value)
