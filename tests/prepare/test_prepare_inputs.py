"""Every form of input: JSONL, Parquet, tars, lists, globs and addresses give the same documents."""

import dataclasses
import json
import os
import re
import shutil
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import ROOT
from helpers.inputs import add, png, write_lines, write_parquet, write_tar
from helpers.manifests import CODECS, open_source, read_all, write
from helpers.prepared import config_for, files

from plait.common.errors import ConfigError, DataError, ResourceError
from plait.config.file import from_dict
from plait.config.run import DataConfig, PrepareConfig, RunConfig
from plait.data.shards import ShardSource
from plait.prepare import remote
from plait.prepare.raw import BrokenRow
from plait.prepare.stages import prepare, raw_source

pytestmark = pytest.mark.usefixtures("fake_codecs")

DOCUMENTS = 40


def equal(a, b) -> bool:
    """Return whether two documents are, but for the key that a tar's samples have."""
    without_key = [{k: v for k, v in d.meta.items() if k != "key"} for d in (a, b)]
    return without_key[0] == without_key[1] and all(
        x[0] == y[0] and np.array_equal(x[1], y[1]) for x, y in zip(a.parts, b.parts, strict=True)
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the same documents in three forms."""
    folder = tmp_path_factory.mktemp("forms")
    numbers = range(DOCUMENTS)
    return {"jsonl": write_lines(folder, numbers), "parquet": write_parquet(folder / "rows.parquet", numbers),
            "tar": write_tar(folder / "rows.tar", numbers)}  # fmt: skip


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_every_form_gives_the_same_documents(written, form):
    expected = read_all(written["jsonl"])["train"]
    found = read_all(written[form])["train"]
    assert len(found) == DOCUMENTS and all(map(equal, expected, found))
    some = open_source(written[form])
    assert all(map(equal, expected[17:23], some.read("train", 17, 23)))
    shares = [[d.meta["row"] for d in read_all(written[form], 0.4)[split]] for split in ("train", "validation")]
    assert sorted([*shares[0], *shares[1]]) == list(range(DOCUMENTS)) and all(len(s) > 8 for s in shares)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_every_kind_with_long_names(tmp_path, kind):
    name = "a" * 90 if kind == tarfile.USTAR_FORMAT else "ž" * 120
    with tarfile.open(tmp_path / "rows.tar", "w", format=kind, pax_headers={"comment": "x"}) as tar:
        add(tar, "folder", type=tarfile.DIRTYPE)
        add(tar, "folder/.hidden.txt", b"hidden")
        add(tar, "README", b"no suffix")
        for i in range(5):
            add(tar, f"folder/{name}{i}.txt", f"text {i}".encode())
            add(tar, f"folder/{name}{i}.seg.png", b"ignored")
    rows = read_all(tmp_path / "rows.tar")["train"]
    assert [d.parts for d in rows] == [[("text", f"text {i}")] for i in range(5)]
    assert rows[0].meta == {"key": f"folder/{name}0"}


WRONG_MEMBERS = {
    "outside": ({"name": "../x.txt"}, "points outside"),
    "outside below": ({"name": "a/../../x.txt"}, "points outside"),
    "absolute": ({"name": "/etc/x.txt"}, "points outside"),
    "link": ({"name": "b.txt", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link"),
    "hard link": ({"name": "b.txt", "type": tarfile.LNKTYPE, "linkname": "a.txt"}, "is a link"),
    "device": ({"name": "b.txt", "type": tarfile.CHRTYPE}, "is a device"),
    "pipe": ({"name": "b.txt", "type": tarfile.FIFOTYPE}, "is a device"),
    "sparse": ({"name": "b.txt", "type": tarfile.GNUTYPE_SPARSE}, "sparse"),
    "huge": ({"name": "b.txt", "size": 1 << 40}, "bytes, at most"),
}


@pytest.mark.parametrize("kind", WRONG_MEMBERS)
def test_dangerous_members_are_broken_rows(tmp_path, kind):
    fields, reason = WRONG_MEMBERS[kind]
    with tarfile.open(tmp_path / "rows.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "a.txt", b"first")
        if kind == "huge":
            tar.fileobj.write(tarfile_header(**fields))
        else:
            add(tar, **fields)
            add(tar, "c.txt", b"last")
    rows = read_all(tmp_path / "rows.tar")["train"]
    broken = [row for row in rows if isinstance(row, BrokenRow)]
    assert len(broken) == 1 and broken[0].line == 2 and reason in broken[0].reason
    assert [d.parts[0][1] for d in rows if not isinstance(d, BrokenRow)] == ["first", "last"][
        : 1 if kind == "huge" else 2
    ]


def tarfile_header(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_tar_without_its_end_mark_is_said_to_be_cut(tmp_path):
    """Where it is cut between two members, every member that is left is whole."""
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for i in range(5):
            add(tar, f"{i}.txt", b"text")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[: 3 * 1024])
    rows = read_all(tmp_path / "cut.tar")["train"]
    assert len(rows) == 4 and [d.parts for d in rows[:3]] == [[("text", "text")]] * 3
    assert rows[3].reason == "the tar ends at byte 3,072 without its end mark: what followed is lost"


def test_a_tar_that_is_cut_short_or_damaged_loses_what_is_behind(tmp_path):
    whole = write_tar(tmp_path / "rows.tar", range(10)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2 // 512 * 512 : len(whole) // 2 // 512 * 512 + 4096] = b"\xff" * 4096
    (tmp_path / "damaged.tar").write_bytes(damaged)
    for name in ("cut.tar", "damaged.tar"):
        rows = read_all(tmp_path / name)["train"]
        good = [row for row in rows if not isinstance(row, BrokenRow)]
        assert 2 <= len(good) < 10 and 1 <= len(rows) - len(good) <= 2
    (tmp_path / "rows.tar.gz").write_bytes(b"\x1f\x8b" + bytes(300))
    with pytest.raises(DataError, match=r"compressed \(gzip\).*unpack it"):
        read_all(tmp_path / "rows.tar.gz")


def test_columns_are_named_by_the_config(tmp_path):
    table = pa.table({"caption": [["a", "b"], ["c"], None], "picture": [png(i) for i in range(3)], "label": [1, 2, 3]})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = read_all(tmp_path / "rows.parquet", columns={"picture": "image", "caption": "text"})["train"]
    assert [[key for key, _ in d.parts] for d in rows] == [["image", "text", "text"], ["image", "text"], ["image"]]
    assert rows[0].parts[1:] == [("text", "a"), ("text", "b")] and rows[2].meta == {"label": 3}
    with pytest.raises(DataError, match=r"prepare\.columns .*'captoin', allowed: .*did you mean 'caption'"):
        read_all(tmp_path / "rows.parquet", columns={"captoin": "text"})
    with pytest.raises(DataError, match=r"has no column 'parts', and none of its columns .*prepare\.columns"):
        read_all(tmp_path / "rows.parquet")
    with tarfile.open(tmp_path / "rows.tar", "w") as tar:
        add(tar, "0.left.png", png(0))
        add(tar, "0.cls", b"fox")
        add(tar, "1.json", b"{}")
        add(tar, "2.\x1b[31m\n", b"")
    first, second, third = read_all(tmp_path / "rows.tar", columns={"cls": "text", "left.png": "image"})["train"]
    assert [key for key, _ in first.parts] == ["text", "image"] and first.parts[0][1] == "fox"
    assert r"(\x1b[31m\n)" in third.reason
    assert second.reason == "none of the sample's suffixes (json) is one of a part (cls, left.png), see prepare.columns"


def test_lists_and_globs_are_one_order(written, tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"part-{k}.tar", range(100 + 10 * k, 110 + 10 * k))
    sources = [written["parquet"], tmp_path / "part-*.tar", written["jsonl"]]
    found = read_all(sources)["train"]
    assert [d.meta["row"] for d in found] == [*range(40), *range(100, 130), *range(40)]
    some = open_source(sources)
    assert [d.meta["row"] for d in some.read("train", 38, 52)] == [38, 39, *range(100, 112)]
    for wrong, reason in (
        (tmp_path / "none-*.tar", "matches no file"),
        (tmp_path / "gone.tar", "there is no manifest"),
    ):
        with pytest.raises(DataError, match=reason):
            prepare(config_for(tmp_path / "data", [str(written["jsonl"]), str(wrong)]))


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_addresses(tmp_path, protocol):
    base = f"memory://{tmp_path.name}" if protocol == "memory" else f"file://{tmp_path}"
    local = tmp_path / "local"
    local.mkdir()
    write_lines(local, range(6))
    write_tar(local / "a.tar", range(6, 9))
    write_parquet(local / "b.parquet", range(9, 12))
    system = fsspec.filesystem(protocol)
    for path in local.iterdir():
        system.pipe_file(f"{base}/{path.name}", path.read_bytes())
    sources = [f"{base}/rows.jsonl", f"{base}/*.tar", f"{base}/b.parquet"]
    found = read_all(sources)["train"]
    expected = read_all([local / "rows.jsonl", local / "a.tar", local / "b.parquet"])["train"]
    assert [d.meta["row"] for d in found] == list(range(12)) and all(map(equal, expected, found))
    system.pipe_file(f"{base}/out.jsonl", b'{"parts": [{"image": "../x.png"}]}\n{"parts": [{"image": "gone.png"}]}\n')
    reasons = [row.reason for row in read_all(f"{base}/out.jsonl")["train"]]
    assert "outside of the manifest's folder" in reasons[0] and "gone.png" in reasons[1]
    with pytest.raises(DataError, match="there is no manifest"):
        read_all(f"{base}/gone.jsonl")
    with pytest.raises(DataError, match="matches no file"):
        read_all(f"{base}/*.gone")


def test_a_missing_package_and_an_unknown_protocol_are_sentences(monkeypatch):
    for package, place in (("s3fs", "s3://bucket/rows.jsonl"), ("gcsfs", "gs://bucket/*.tar")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        remote._filesystem.cache_clear()
        with pytest.raises(ResourceError, match=rf"'{place[:9]}.*needs package '{package}', install it: pip install"):
            read_all(place)
    with pytest.raises(DataError, match="unknown protocol 'nonsense'"):
        read_all("nonsense://a/b.jsonl")
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ResourceError, match=r"needs package 'fsspec', install it: pip install 'plait\[remote\]'"):
        read_all("s3://bucket/rows.jsonl")


@pytest.fixture
def mixed_sources(written, tmp_path):
    """Return sources of all forms, two of their rows broken."""
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for i in range(300, 320):
            add(tar, f"{i}.txt", f"document {i}".encode())
            add(tar, f"{i}.png", b"broken" if i == 305 else png(i))
    write(tmp_path, [{"parts": [{"text": "good"}]}, {"parts": []}], "c.jsonl")
    return [str(written["parquet"]), str(tmp_path / "b.tar"), str(tmp_path / "c.jsonl")]


def test_prepare_from_several_sources(mixed_sources, tmp_path):
    """One worker or three, in one go or stopped: the same bytes."""
    config = config_for(tmp_path / "one", mixed_sources, num_workers=1, shard_documents=16)
    figures = prepare(config)
    assert figures["broken_rows"] == 2 and figures["documents_train"] + figures["documents_held_out"] == 60
    broken = [json.loads(line) for line in (tmp_path / "one/broken.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"]) for row in broken] == [("b.tar", 6), ("c.jsonl", 2)]
    prepare(config_for(tmp_path / "three", mixed_sources, num_workers=3, shard_documents=16))
    assert files(tmp_path / "one") == files(tmp_path / "three")
    again = raw_source(config)
    source = ShardSource(tmp_path / "one", "validation")
    readable = [d for d in again.read("validation", 0, 99) if not isinstance(d, BrokenRow)]
    assert [d.meta for d in readable] == [source.meta(i) for i in range(len(source))]


def test_prepare_from_an_address(tmp_path):
    write_lines(tmp_path, range(12))
    prepare(config_for(tmp_path / "data", f"file://{tmp_path}/rows.jsonl"))
    prepare(config_for(tmp_path / "local", tmp_path / "rows.jsonl"))
    found, expected = (files(tmp_path / name) for name in ("data", "local"))
    different = {name for name in expected if found[name] != expected[name]}
    assert found.keys() == expected.keys() and different == {"settings.json"}  # which says what the source was
    write_lines(tmp_path, range(13))
    with pytest.raises(ConfigError, match=r"prepare\.source: 'manifest"):
        prepare(config_for(tmp_path / "data", f"file://{tmp_path}/rows.jsonl"))


def test_what_changes_is_told_apart(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(1000))
    places_of = [str(tmp_path / name) for name in ("a", "b")]
    for whole in (True, False):
        monkeypatch.setattr(remote, "_WHOLE", 1 << 20 if whole else 10)
        monkeypatch.setattr(remote, "_END", 8)
        before = remote.fingerprint(places_of)
        assert remote.fingerprint(places_of) == before != remote.fingerprint(places_of[::-1])
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        moved = [shutil.copy(place, tmp_path / "elsewhere") for place in places_of]
        assert remote.fingerprint(moved) == before
        for at, seen in ((0, True), (999, True), (500, whole)):
            changed = bytearray(1000)
            changed[at] = 1
            (tmp_path / "b").write_bytes(changed)
            assert (remote.fingerprint(places_of) != before) == seen
        (tmp_path / "b").write_bytes(bytes(1000))


def test_a_file_that_changes_its_subfolder_is_told_apart(tmp_path):
    for folder in ("train", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "train" / "a.txt").write_text("a")
    before = remote.fingerprint([str(tmp_path)])
    (tmp_path / "train" / "a.txt").rename(tmp_path / "other" / "a.txt")
    assert remote.fingerprint([str(tmp_path)]) != before


def test_a_scan_that_was_stopped_goes_on(mixed_sources, tmp_path, monkeypatch):
    config = config_for(tmp_path / "data", mixed_sources, shard_documents=16)
    with monkeypatch.context() as patch:
        patch.setattr("plait.prepare.stages.join", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    notes = sorted((tmp_path / "data/work/rows").glob("*.json"))
    assert len(notes) == 3
    before = [path.stat().st_mtime_ns for path in notes[:2]]
    os.remove(notes[2])
    with monkeypatch.context() as patch:
        patch.setattr("plait.prepare.stages.join", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert [path.stat().st_mtime_ns for path in notes[:2]] == before
    prepare(config)
    prepare(config_for(tmp_path / "other", mixed_sources, shard_documents=16))
    assert files(tmp_path / "data") == files(tmp_path / "other")


def stopped(*_, **__):
    raise KeyboardInterrupt


def test_manifests_without_rows_and_changed_manifests(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"prepare\.source: manifest .* has no rows"):
        prepare(config_for(tmp_path / "empty", tmp_path / "rows.jsonl"))
    write_lines(tmp_path, range(8))
    with pytest.raises(DataError, match=r"all 8 rows .* fall within prepare\.validation_share 0\.999"):
        prepare(config_for(tmp_path / "held", tmp_path / "rows.jsonl", validation_share=0.999))
    config = config_for(tmp_path / "data", tmp_path / "rows.jsonl", validation_share=0.0)
    prepare(config)
    write_lines(tmp_path, range(9))
    with pytest.raises(ConfigError, match=r"prepare\.source: 'manifest .*--restart"):
        prepare(config)
    for wrong in ("", [], ["scenes", "a.jsonl"]):
        with pytest.raises(ConfigError, match=r"prepare\.source: .* is not allowed"):
            prepare(with_source(config, wrong))


def with_source(config, source):
    config.prepare.source = source
    return config


def test_long_lines_are_broken_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("plait.prepare.formats.MAX_ITEM_BYTES", 100)
    monkeypatch.setattr("plait.prepare.formats._SKIP", 64)
    good = {"parts": [{"text": "good"}]}
    path = write(tmp_path, [good, {"parts": [{"text": "x" * 1000}]}, good, b"y" * 101])
    rows = read_all(path)["train"]
    assert [getattr(row, "line", 0) for row in rows] == [0, 2, 0, 4]
    assert rows[1].reason == rows[3].reason == "the line has more than 100 bytes"


def test_memory_does_not_grow_with_the_manifest(tmp_path):
    """Finding the rows of 50,000 lines holds no more than a few of them."""
    import tracemalloc

    line = json.dumps({"parts": [{"text": "word " * 40}]}) + "\n"
    with open(tmp_path / "rows.jsonl", "w") as file:
        file.writelines([line] * 50_000)
    tracemalloc.start()
    source = open_source(tmp_path / "rows.jsonl", CODECS)
    next(source.read("train", 49_000, 49_001))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.splits()["train"] == 50_000 and peak < 4e6


def test_the_page_names_settings_that_there_are():
    """docs/data.md: its YAML is a config, and every setting that it mentions exists."""
    text = (ROOT / "docs/data.md").read_text()
    model = {"modalities": {"text": {"vocab_size": 10}, "image": {"vocab_size": 9}}, "width": 16, "num_heads": 2}
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    for block in map(yaml.safe_load, blocks):
        from_dict(RunConfig, {"model": block} if "modalities" in block else block | {"model": model})
    for row in re.findall(r"```json\n(.*?)```", text, re.DOTALL):
        assert json.loads(row)["parts"]
    for section, cls in (("prepare", PrepareConfig), ("data", DataConfig)):
        named = set(re.findall(rf"\b{section}\.([a-z_]+)\b", text)) - {"md", "py"}
        assert len(named) >= 2 and named <= {f.name for f in dataclasses.fields(cls)}
