"""The account of prepare closes: whatever random containers hold is stored, broken, or left out and counted."""

import datetime
import io
import json
import queue
import tarfile
import threading
import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fake_data import CODEC_NAMES, FakeImage, FakeOptions, FakeSpeech, FakeText
from helpers.inputs import add, flac, png
from helpers.manifests import read_all
from helpers.prepared import config_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from plait.codecs import CODECS
from plait.common.errors import DataError
from plait.config.run import PrepareConfig
from plait.config.run_records import ModalitySettings
from plait.data.shards import codec_folder
from plait.prepare import encode
from plait.prepare.account import ShardAccount, account_lines, account_of
from plait.prepare.encode import encode_shard, finished_shard, save_codec, scan_file
from plait.prepare.formats import open_rows
from plait.prepare.raw import BrokenRow
from plait.prepare.raw_sources import Setup, rows_folder
from plait.prepare.row_index import RowIndex, join, scans_of
from plait.prepare.stages import prepare

pytestmark = pytest.mark.usefixtures("fake_codecs")

KEYS = {"text": "text", "image": "image", "speech": "audio"}
PNG, FLAC = png(0), flac(0)


def codec(name):
    made = {"text": FakeText, "image": FakeImage, "speech": FakeSpeech}[name](FakeOptions())
    if name == "image":
        made.mean = 100.0
    return made


def account(folder, files, names=tuple(KEYS), **options) -> tuple[list[dict], list[dict]]:
    """Read and encode files in this process; return the account, and the notes of the shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plait.codecs.CODECS", CODECS | CODEC_NAMES)
        for name, place in CODEC_NAMES.items():
            patch.setitem(CODECS, name, place)
        prepare_ = PrepareConfig(**({"validation_share": 0.3, "shard_documents": 7} | options))
        modalities = {name: ModalitySettings(f"fake_{name}") for name in names}
        setup = Setup(folder, prepare_, 0, modalities, [str(f) for f in files])
        patch.setattr(encode, "_worker", encode._Worker(setup, queue.SimpleQueue(), threading.Event()), raising=False)
        for name in names:
            save_codec(codec(name), codec_folder(folder, name))
        for number in range(len(files)):
            scan_file(number)
        join(folder / "work/rows", rows_folder(folder), len(files))
        records = {name: {"vocab_size": 256, "latent_channels": 0, "key": KEYS[name]} for name in names}
        notes = []
        for split, rows in RowIndex(rows_folder(folder)).splits().items():
            for number, start in enumerate(range(0, rows, 7)):
                encode_shard(split, number, start, min(start + 7, rows), records)
                notes.append(finished_shard(folder, split, number))
        return account_of(setup.files, scans_of(rows_folder(folder)), notes), notes


def lines_file(rng, path) -> dict:
    """Write lines of JSON, or an array of them; return what the account must say."""
    rows, good, given_ = [], 0, Counter()
    for _ in range(rng.integers(1, 12)):
        kind = rng.integers(6)
        keys = [("text", "image", "audio")[k] for k in rng.integers(0, 3, rng.integers(1, 5))]
        files = {"image": "a.png", "audio": "a.flac", "text": "some text"}
        parts = [{key: files[key]} for key in keys]
        if kind == 0:
            parts.append({"image": "gone.png"})
        good += kind != 0
        given_.update(key for part in parts for key in part)
        rows.append(json.dumps({"parts": parts}))
    blank = int(rng.integers(3))
    if rng.integers(2):
        path.write_text("[" + ",\n".join(rows) + "]")
        return {"rows": len(rows), "stored": good, "given": given_}
    lines = [*rows, *[" "] * blank]
    path.write_text("".join(line + "\n" for line in (lines[i] for i in rng.permutation(len(lines)))))
    return {"rows": len(rows), "stored": good, "given": given_, "blank lines": blank}


def parquet_file(rng, path) -> dict:
    n = int(rng.integers(1, 12))
    every = {
        "text": pa.array([None if rng.integers(5) == 0 else f"text {i}" for i in range(n)]),
        "caption": pa.array([f"caption {i}" for i in range(n)]),
        "image": pa.array([{"bytes": PNG, "path": "a.png"} for _ in range(n)]),
        "audio": pa.array([[FLAC] * int(k) for k in rng.integers(0, 3, n)], pa.list_(pa.binary())),
        "row": pa.array(range(n)),
        "when": pa.array([datetime.date(2020, 1, 1)] * n),
        "kind": pa.array(["a"] * n).dictionary_encode(),
        "embedding": pa.array([[1.0, 2.0]] * n),
        "raw": pa.array([b"x"] * n),
    }
    chosen = ["image", *[name for name in every if name != "image" and rng.integers(2)]]
    chosen = [chosen[i] for i in rng.permutation(len(chosen))]
    pq.write_table(pa.table({name: every[name] for name in chosen}), path, row_group_size=5)
    parts = {"text": "text", "image": "image", "audio": "audio"}
    parts = {name: parts[name] for name in chosen if name in parts}
    if "caption" in chosen and "text" not in chosen:
        parts = {name: ({"caption": "text"} | parts)[name] for name in chosen if name in parts or name == "caption"}
    given_ = Counter()
    for name, key in parts.items():
        values = every[name].to_pylist()
        given_[key] += sum(len(v) if isinstance(v, list) else v is not None for v in values)
    meta = {name for name in ("row", "when", "kind", "caption") if name in chosen and name not in parts}
    left_out = {name for name in ("embedding", "raw") if name in chosen}
    empty = every["text"].null_count if "text" in parts else 0
    return {"rows": n, "stored": n, "given": +given_, "columns": (parts, meta, left_out), "empty cells": empty}


def tar_file(rng, path) -> dict:
    members = []  # (name, data)
    for i in range(rng.integers(1, 10)):
        name = f"{'sub.d/' if rng.integers(3) == 0 else ''}{i:03d}"
        for suffix, data in (("txt", b"text"), ("png", PNG), ("flac", FLAC), ("json", b"{}"), ("cls", b"3"),
                             ("seg.png", b"-"), ("PNG" if rng.integers(4) else "jpg", PNG)):  # fmt: skip
            if rng.integers(2):
                members.append((name + "." + suffix, data if rng.integers(12) else b"\x00bad"))
    members += [("README", b""), (".hidden.txt", b""), ("sub.d/._1.txt", b"")][: rng.integers(4)]
    if members and rng.integers(4) == 0:
        members.append(members[0])
    order = rng.permutation(len(members)) if rng.integers(2) else range(len(members))
    members = [members[i] for i in order]
    if rng.integers(3) == 0:  # tar cf x.tar *.png *.txt
        members.sort(key=lambda member: member[0].rsplit(".", 1)[-1])
    with tarfile.open(path, "w", format=int(rng.integers(3))) as tar:
        if rng.integers(2):
            add(tar, "sub.d", type=tarfile.DIRTYPE)
        for name, data in members:
            add(tar, ("./" if rng.integers(4) == 0 else "") + name, data)
    with tarfile.open(path) as tar:
        total = len(tar.getmembers())
        names = [m.name.removeprefix("./") for m in tar.getmembers() if m.isfile()]
    keys = {}
    for name in names:
        folder, _, base = name.rpartition("/")
        if "." in base and not base.startswith("."):
            keys.setdefault((folder, base.split(".", 1)[0]), []).append(base.split(".", 1)[1].lower())
    return {"rows": len(keys), "members": total, "samples": keys}


WRITERS = {"jsonl": lines_file, "parquet": parquet_file, "tar": tar_file}


@given(seed=st.integers(0, 2**32), forms=st.lists(st.sampled_from(list(WRITERS)), min_size=1, max_size=3),
       names=st.lists(st.sampled_from(list(KEYS)), min_size=1, unique=True))  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_account_of_random_containers_closes(tmp_path_factory, seed, forms, names):
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("account")
    (folder / "a.png").write_bytes(PNG)
    (folder / "a.flac").write_bytes(FLAC)
    files = [folder / f"{k}.{form}" for k, form in enumerate(forms)]
    expected = [WRITERS[form](rng, path) for form, path in zip(forms, files, strict=True)]
    entries, notes = account(folder / "data", files, names, max_broken_share=1.0)
    for entry, wanted in zip(entries, expected, strict=True):
        assert entry["rows"] == wanted["rows"] == entry["stored"] + entry["broken"]
        for key, counts in entry["parts"].items():
            assert counts["given"] == counts["stored"] + counts["left out"] + counts["in broken rows"]
            assert min(counts.values()) >= 0 and (key in [KEYS[n] for n in names] or not counts["stored"])
        if "given" in wanted:
            assert {key: counts["given"] for key, counts in entry["parts"].items()} == wanted["given"]
            assert all(entry[k] == wanted[k] for k in ("blank lines", "empty cells") if k in wanted)
        if "columns" in wanted:
            found = entry["columns"]
            assert (found["parts"], set(found["meta"]), set(found["left out"])) == wanted["columns"]
        if "members" in wanted:
            found = entry["members"]
            assert (
                sum(found["left out"].values()) + sum(n for n in found.values() if isinstance(n, int))
                == (wanted["members"])
            )
    stored = Counter()
    for note in notes:
        stored.update({KEYS[name]: n["parts"] for name, n in note["modalities"].items()})
    assert stored == sum((Counter({k: c["stored"] for k, c in e["parts"].items()}) for e in entries), Counter())
    assert sum(len(note["broken"]) for note in notes) == sum(entry["broken"] for entry in entries)
    lines = account_lines(entries, {name: KEYS[name] for name in names})
    assert len(lines) >= len(entries) and all(line.isprintable() for line in lines)


@pytest.mark.parametrize("order", ["all images first", "shuffled", "two tars joined"])
def test_samples_are_whole_wherever_their_members_lie(tmp_path, order):
    numbers = np.random.default_rng(0).permutation(40)
    members = [(f"./{i}.png" if i % 2 else f"{i}.png", png(i)) for i in numbers]
    members += [(f"{i}.txt", f"text {i}".encode()) for i in sorted(numbers)]
    if order == "shuffled":
        members = [members[i] for i in np.random.default_rng(1).permutation(len(members))]
    halves = [members[:50], members[50:]] if order == "two tars joined" else [members]
    data = b""
    for half in halves:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in half:
                add(tar, name, content)
        data += buffer.getvalue()
    (tmp_path / "a.tar").write_bytes(data)
    for share in (0.0, 0.4):
        found = read_all(tmp_path / "a.tar", share)
        documents = [d for rows in found.values() for d in rows]
        assert len(documents) == 40 and not any(isinstance(d, BrokenRow) for d in documents)
        for d in documents:
            (_, text), (_, image) = d.parts
            assert text == f"text {d.meta['key']}" and image.shape[1] == 9 + int(d.meta["key"]) % 5


def test_names_that_come_twice_anywhere_are_a_broken_row(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.txt", "b.txt", "c.txt", "a.TXT", "a.png"):
            add(tar, name, b"text")
    broken, *good = read_all(tmp_path / "a.tar")["train"]
    assert broken.reason == "member 'a.TXT' comes twice" and [d.meta["key"] for d in good] == ["b", "c"]


def test_captions_beside_images_are_text_or_it_is_said(tmp_path):
    """Also with codecs from elsewhere, where nothing had to be learnt from them."""
    for name in ("text", "image"):
        save_codec(codec(name), codec_folder(tmp_path / "other", name))
    lines = []

    class Said:
        def print(self, text):
            lines.append(text)

    from plait.common.progress import QuietProgress

    progress = type("Said", (Said, QuietProgress), {})()
    for column, stored in (("caption", 9), ("beschreibung", 0)):
        path = tmp_path / f"{column}.parquet"
        pq.write_table(pa.table({"image": [PNG] * 9, column: [f"fox {i}" for i in range(9)]}), path)
        config = config_for(tmp_path / column, path, ("text", "image"), codecs_from=str(tmp_path / "other"))
        prepare(config, progress=progress)
        report = json.loads((tmp_path / column / "report.json").read_text())
        assert report["sources"][0]["parts"].get("text", {"stored": 0})["stored"] == stored
    assert any("columns: image, caption (text) are parts" in line for line in lines)
    assert any(
        line.startswith("text: no part 'text' is in any of the sources; if one of beschreibung is it, name all")
        for line in lines
    )


def test_frames_and_profiles_that_are_left_out_are_counted(tmp_path):
    from plait.codecs.images import read_image

    class RealImage(FakeImage):
        def read(self, value, base):
            return read_image(value, base, 8)

    first, second = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "b.png", icc_profile=b"any")
    rows = [{"parts": [{"image": name}, {"image": "a.gif"}]} for name in ("a.tif", "b.png", "gone.png")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_all(tmp_path / "a.jsonl", codecs={"image": RealImage(FakeOptions())})["train"]
    counted = ShardAccount()
    for row in found:
        counted.add(0, row, ["image"], broken=isinstance(row, BrokenRow))
    frames, profiles = counted.files["0"]["remarks"].values()
    assert (frames, profiles, counted.files["0"]["broken"]) == (3, 1, 1)


def test_what_a_codec_cannot_encode_is_a_broken_row(tmp_path):
    class Odd(FakeText):
        def encode(self, media):
            if "odd" in media:
                raise RuntimeError("shapes differ\nin the network")
            return super().encode(media)

    results = encode._encode_items(Odd(FakeOptions()), ["a", "odd", "b"])
    assert results[1] == "it cannot be encoded: RuntimeError: shapes differ" and len(results[2].ids) == 1


def test_the_index_of_a_tar_holds_little(tmp_path):
    """All headers are read before a sample is, and none of them is kept."""

    def peak(samples: int) -> int:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for suffix in ("txt", "cls"):
                for i in range(samples):
                    add(tar, f"{i:06d}.{suffix}", b"text")
        rows = open_rows(str(tmp_path / "a.tar"), {}, ["text"])
        tracemalloc.start()
        assert sum(1 for _ in rows.rows()) == samples
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(900) - peak(100) < 2 * 800 * 200  # bytes of a stretch, of which each sample has two


def test_an_account_that_does_not_close_stops(tmp_path):
    scan = {"train": 2, "validation": 0, "given": {"text": 2}, "account": {"form": "JSON lines"}}
    note = {"files": {"0": {"stored": 1, "broken": 0, "parts": {"text": 1}, "left out": {}, "remarks": {}}}}
    with pytest.raises(DataError, match=r"has 2 rows, of which 1 were stored and 0 are broken: it changed"):
        account_of(["a.jsonl"], [scan], [note])
