"""Nothing that a user brings is executed, fills the memory, or ends in anything but one sentence.

FUZZ_EXAMPLES=5000 in the environment searches longer than every run does.
"""

import ast
import gzip
import io
import json
import os
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from helpers import ROOT
from helpers.fake_data import (
    MODALITIES,
    FakeImage,
    FakeOptions,
    FakeSpeech,
    FakeText,
    run_config,
    scene_like,
    write_folder,
)
from helpers.inputs import add, flac, png
from helpers.manifests import open_source, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from plait.batch.documents import Document, Part
from plait.codecs import load_codec
from plait.codecs.images import MAX_PIXELS, read_image
from plait.codecs.sounds import MAX_SECONDS, read_sound
from plait.codecs.text import PretrainedTokenizerCodec
from plait.common.errors import DataError, PlaitError
from plait.data.arrays import MAX_HEADER
from plait.data.loader import Loader
from plait.data.shards import ShardSource
from plait.prepare.raw import BrokenRow, RawDocument

PACKAGE = ROOT / "plait"
FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# -- what the package never does ------------------------------------------------------------------------------------

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
                   "pandas.read_pickle", "torch.hub.load", "tarfile.open"}  # fmt: skip


def name_of(node: ast.AST) -> str:
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def problems(tree: ast.AST):
    """Yield what a file does that would run, or unpickle, something that a user brought."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_IMPORTS)
        if not isinstance(node, ast.Call):
            continue
        name, given_ = name_of(node.func), {k.arg: k.value for k in node.keywords}

        def says(key, value, given_=given_):
            return isinstance(given_.get(key), ast.Constant) and given_[key].value is value

        if name in FORBIDDEN_CALLS:
            yield f"calls {name}"
        if name == "torch.load" and not says("weights_only", True):
            yield "calls torch.load without weights_only=True"
        if name.endswith(".load") and "allow_pickle" in given_ and not says("allow_pickle", False):
            yield "loads with allow_pickle"
        if "trust_remote_code" in given_ and not says("trust_remote_code", False):
            yield "trusts remote code"
        if says("shell", True):
            yield "calls a shell"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_unpickled_or_executed(path):
    assert not list(problems(ast.parse(path.read_text())))


CODE = [
    "import pickle", "from joblib import load", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(f)",
    "np.load(f, allow_pickle=True)", "AutoModel.from_pretrained(p, trust_remote_code=x)", "run(c, shell=True)",
]  # fmt: skip


@pytest.mark.parametrize("code", CODE)
def test_the_search_finds_what_it_looks_for(code):
    assert list(problems(ast.parse(code)))


def test_code_beside_a_tokenizer_is_never_run(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tok: pass\n")
    config = {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": ["evil.Tok", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "evil.Tok"}}))
    with pytest.raises(PlaitError, match=r"codec_options\.path"):
        PretrainedTokenizerCodec.from_options({"path": str(tmp_path)})
    assert not (tmp_path / "ran").exists()


# -- paths ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def inside(tmp_path):
    """Return a manifest's folder with an image in it and one outside of it."""
    folder = tmp_path / "inside"
    (folder / "below").mkdir(parents=True)
    for path in (tmp_path / "secret.png", folder / "a.png", folder / "below/b.png"):
        path.write_bytes(png(0))
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    os.symlink(tmp_path, folder / "up")
    os.symlink(folder / "a.png", folder / "own.png")
    os.mkfifo(folder / "pipe.png")
    return folder


OUTSIDE = ["../secret.png", "below/../../secret.png", "{up}/secret.png", "link.png", "up/secret.png",
           "file:///etc/passwd", "http://localhost/a.png", "memory://a.png"]  # fmt: skip


@pytest.mark.parametrize("value", OUTSIDE)
def test_paths_that_leave_the_folder_are_refused(inside, value):
    value = value.format(up=inside.parent)
    path = write(inside, [{"parts": [{"image": value}]}])
    (row,) = open_source(path).read("train", 0, 1)
    assert isinstance(row, BrokenRow) and "lies outside of the manifest's folder" in row.reason
    assert "prepare.allow_outside" in row.reason
    if "://" not in value:
        (row,) = open_source(path, allow_outside=True).read("train", 0, 1)
        assert isinstance(row, RawDocument)


@pytest.mark.parametrize("value", ["a.png", "below/b.png", "below/../a.png", "own.png", "./a.png"])
def test_paths_within_the_folder_are_read(inside, value):
    (row,) = open_source(write(inside, [{"parts": [{"image": value}]}])).read("train", 0, 1)
    assert isinstance(row, RawDocument)


@pytest.mark.parametrize("value", ["pipe.png", "below", ".", "a\0b.png", "x" * 5000, "gone.png"])
def test_what_is_no_file_is_refused_at_once(inside, value):
    """A pipe would be waited for."""
    (row,) = open_source(write(inside, [{"parts": [{"image": value}]}])).read("train", 0, 1)
    assert isinstance(row, BrokenRow) and "\n" not in row.reason


# -- sizes ----------------------------------------------------------------------------------------------------------


def png_of_size(width: int, height: int) -> bytes:
    """Return a small PNG file that unpacks to an absurd image of zeros."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (2**31 - 1, 1), (MAX_PIXELS + 1, 1)])
def test_images_of_absurd_size_are_refused(tmp_path, width, height):
    (tmp_path / "bomb.png").write_bytes(png_of_size(width, height))
    with pytest.raises(DataError, match=r"image: .*bomb\.png' .*(pixels|not a readable image)"):
        read_image("bomb.png", tmp_path, 32)


def test_images_that_hold_instructions_are_refused(tmp_path):
    """PostScript would be handed to another program."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    with pytest.raises(DataError, match="not a readable image"):
        read_image("a.eps", tmp_path, 32)


def test_recordings_of_absurd_length_are_refused(tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros((MAX_SECONDS + 1) * 1000, np.int16), 1000)
    soundfile.write(tmp_path / "slow.wav", np.zeros(100, np.int16), 7)
    soundfile.write(tmp_path / "many.wav", np.zeros((300_000, 1000), np.uint8).astype(np.int16), 8000)
    for name, reason in (("long.flac", r"lasts 3,601 s"), ("slow.wav", "has 7 samples per second"),
                         ("many.wav", r"in 1000 channels")):  # fmt: skip
        with pytest.raises(DataError, match=reason):
            read_sound(name, tmp_path, 16_000)


def test_headers_of_absurd_size_are_refused(tmp_path):
    folder = write_folder(tmp_path, {"train": [scene_like(0)]})
    path = folder / "shards/train-00000.safetensors"
    data = path.read_bytes()
    for size in (MAX_HEADER + 1, 2**63, len(data)):
        path.write_bytes(struct.pack("<Q", size) + data[8:])
        with pytest.raises(DataError, match="the length of its header is absurd"):
            ShardSource(folder, "train").document(0)


# -- fuzz -----------------------------------------------------------------------------------------------------------


class RealImage(FakeImage):
    """Reads as plait's own codecs do."""

    def read(self, value, base):
        return read_image(value, base, 16)


class RealSpeech(FakeSpeech):
    """Reads as plait's own codecs do."""

    def read(self, value, base):
        return read_sound(value, base, 16_000)


READERS = {"text": FakeText(FakeOptions()), "image": RealImage(FakeOptions()), "speech": RealSpeech(FakeOptions())}

HARM = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.one_of(st.binary(min_size=1, max_size=8), st.integers(0, 7))),
    min_size=1,
    max_size=4,
)
"""Bytes that are written, or a bit that is flipped, at places given as shares of the file."""
CUT = st.one_of(st.none(), st.floats(0, 1))


def harmed(data: bytes, harm, cut) -> bytes:
    found = bytearray(data)
    for share, change in harm:
        at = int(share * len(found))
        if isinstance(change, int):
            found[at] ^= 1 << change
        else:
            found[at : at + len(change)] = change
    return bytes(found if cut is None else found[: int(cut * len(found))])


def read_everything(path) -> None:
    """Read all rows; whatever the file is, this ends in rows, broken rows or one sentence."""
    try:
        source = open_source(path, READERS)
        rows = [row for split, count in source.splits().items() for row in source.read(split, 0, count)]
    except PlaitError as error:
        assert "\n" not in str(error)
        return
    for row in rows:
        assert isinstance(row, RawDocument | BrokenRow)
        if isinstance(row, BrokenRow):
            assert row.reason and row.reason.isprintable()
        else:
            json.dumps(row.meta, ensure_ascii=False).encode()


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["parts", "meta", "text", "image", "a.png", "../a.png", "\ud800"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["parts", "meta", "text", "image", "audio", "bytes", "path"]), inner, max_size=3
        ),
    ),
    max_leaves=12,
)


@given(rows=st.lists(st.one_of(JSON.map(lambda v: json.dumps(v).encode()), st.binary(max_size=60),
                               JSON.map(lambda v: json.dumps({"parts": [v]}).encode()),
                               JSON.map(lambda v: json.dumps({"parts": [{"text": "a"}], "meta": {"x": v}}).encode()),
                               st.tuples(st.sampled_from(["text", "image", "audio"]), JSON).map(
                                   lambda kv: json.dumps({"parts": [dict([kv])]}).encode())),
                     max_size=5))  # fmt: skip
@FUZZ
def test_any_lines_are_rows_or_broken_rows(tmp_path, rows):
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(rows))
    read_everything(tmp_path / "rows.jsonl")


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(3):
            add(tar, f"{'é' * 60}{i}.txt", b"text")
            add(tar, f"{'é' * 60}{i}.png", png(i))
            add(tar, f"{'é' * 60}{i}.json", b'{"a": 1}')
    columns = {"text": ["a", "b", "c"], "image": [{"bytes": png(i), "path": "x.png"} for i in range(3)]}
    pq.write_table(pa.table(columns), folder / "b.parquet", row_group_size=2)
    parts = [[{"text": "a"}, {"image": "x"}], [{"text": "b"}], []]
    pq.write_table(pa.table({"parts": parts, "meta": [{"i": i} for i in range(3)]}), folder / "c.parquet")
    wave = io.BytesIO()
    soundfile.write(wave, np.sin(np.arange(800) / 9), 8000, format="WAV")
    found = {name: (folder / name).read_bytes() for name in ("a.tar", "b.parquet", "c.parquet")}
    rows = [{"parts": [{"text": "a [b] {c} \\" + '"' * k}], "meta": {"k": [k]}} for k in range(9)]
    found["g.json"] = json.dumps(rows, indent=1).encode()
    found["h.jsonl.gz"] = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    return found | {"d.png": png(1), "e.wav": wave.getvalue(), "f.flac": flac(1)}


@pytest.mark.parametrize("name", ["a.tar", "b.parquet", "c.parquet", "g.json", "h.jsonl.gz"])
@given(harm=HARM, cut=CUT)
@FUZZ
def test_damaged_manifests_are_rows_or_sentences(tmp_path, good_files, name, harm, cut):
    (tmp_path / name).write_bytes(harmed(good_files[name], harm, cut))
    read_everything(tmp_path / name)


@given(
    field=st.sampled_from([(0, 100), (124, 12), (148, 8), (156, 1), (257, 8), (345, 155)]),
    data=st.binary(max_size=20),
    block=st.integers(0, 20),
    fix=st.booleans(),
)
@FUZZ
def test_tar_headers_of_any_content(tmp_path, good_files, field, data, block, fix):
    """With the checksum made right, so that the other fields are believed."""
    found = bytearray(good_files["a.tar"])
    start = 512 * block
    at, size = field
    found[start + at : start + at + min(size, len(data))] = data[:size]
    if fix:
        found[start + 148 : start + 156] = b" " * 8
        found[start + 148 : start + 156] = b"%06o\0 " % sum(found[start : start + 512])
    (tmp_path / "a.tar").write_bytes(found)
    read_everything(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["d.png", "e.wav", "f.flac"])
@given(harm=HARM, cut=CUT)
@FUZZ
def test_damaged_media_are_media_or_sentences(tmp_path, good_files, name, harm, cut):
    (tmp_path / name).write_bytes(harmed(good_files[name], harm, cut))
    try:
        found = read_image(name, tmp_path, 16) if name == "d.png" else read_sound(name, tmp_path, 16_000)
    except DataError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert found.size and (found.shape == (16, 16, 3) or found.ndim == 1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a prepared folder, its files, and its documents."""
    rng = np.random.default_rng(0)
    documents = [scene_like(i) for i in range(12)]
    for document in documents[::3]:
        document.parts.append(Part("depth", latents=rng.standard_normal((4, 3)).astype(np.float32), grid=(2, 2)))
    folder = write_folder(tmp_path_factory.mktemp("prepared"), {"train": documents}, per_shard=8, modalities=MODALITIES)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return folder, found, documents


def read_folder(folder, documents) -> None:
    """Read every document: it is what was written, or one sentence says why not."""
    for i, written in enumerate(documents):
        try:
            (read,) = ShardSource(folder, "train").documents([i])
        except PlaitError as error:
            assert "\n" not in str(error)
            continue
        assert [p.modality for p in read.parts] == [p.modality for p in written.parts]
        for a, b in zip(read.parts, written.parts, strict=True):
            assert a.grid == b.grid
            np.testing.assert_array_equal(
                a.ids if b.latents is None else a.latents, b.ids if b.latents is None else b.latents
            )
    try:
        for _, (batch, _) in zip(range(3), Loader(run_config(folder)), strict=False):
            assert batch.num_tokens <= 512
    except PlaitError as error:
        assert "\n" not in str(error)


SHARDS = ["shards/train-00000.safetensors", "shards/train-00001.safetensors", "tables/train.safetensors"]


@pytest.mark.parametrize("name", SHARDS)
@given(harm=HARM, cut=CUT)
@FUZZ
def test_damaged_shards_and_tables_give_what_was_written_or_a_sentence(prepared, name, harm, cut):
    folder, found, documents = prepared
    try:
        (folder / name).write_bytes(harmed(found[name], harm, cut))
        read_folder(folder, documents)
    finally:
        (folder / name).write_bytes(found[name])


NUMBERS = st.one_of(st.integers(-3, 9), st.sampled_from([2**31, 2**63, -(2**63), 10**30]), st.floats(), st.none(),
                    st.booleans(), st.text(max_size=3), st.lists(st.integers(0, 9), max_size=3))  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
@given(array=st.integers(0, 2), field=st.sampled_from(["dtype", "shape", "data_offsets"]), value=st.one_of(
    NUMBERS, st.lists(NUMBERS, max_size=3), st.sampled_from(["U8", "F16", "I32", "F32", "BOOL"])))  # fmt: skip
@FUZZ
def test_headers_of_any_content_give_what_was_written_or_a_sentence(prepared, name, array, field, value):
    folder, found, documents = prepared
    size = int.from_bytes(found[name][:8], "little")
    header = json.loads(found[name][8 : 8 + size])
    header[list(header)[array % len(header)]][field] = value
    text = json.dumps(header).encode()[:size].ljust(size)
    try:
        (folder / name).write_bytes(found[name][:8] + text + found[name][8 + size :])
        read_folder(folder, documents)
    finally:
        (folder / name).write_bytes(found[name])


@given(path=st.lists(st.integers(0, 5), min_size=1, max_size=5), value=st.one_of(NUMBERS, st.just({}), st.just("../x")))
@FUZZ
def test_an_index_of_any_content_is_a_sentence(prepared, path, value):
    folder, found, documents = prepared
    index = json.loads(found["index.json"])
    place = index
    for step in path[:-1]:
        keys = list(place) if isinstance(place, dict) else list(range(len(place))) if isinstance(place, list) else []
        if not keys or not isinstance(place[keys[step % len(keys)]], dict | list):
            break
        place = place[keys[step % len(keys)]]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if keys:
        place[keys[path[-1] % len(keys)]] = value
    try:
        (folder / "index.json").write_text(json.dumps(index))
        read_folder_of_index(folder, documents)
    finally:
        (folder / "index.json").write_bytes(found["index.json"])


def read_folder_of_index(folder, documents) -> None:
    """As `read_folder`; an index may also name the modalities otherwise, which changes what documents are called."""
    try:
        source = ShardSource(folder, "train")
        for i in range(len(source)):
            source.document(i)
        next(iter(Loader(run_config(folder))))
    except PlaitError as error:
        assert "\n" not in str(error)


def test_a_shard_outside_of_its_folder_is_refused(tmp_path):
    folder = write_folder(tmp_path / "data", {"train": [Document([Part("text", np.arange(4))])]})
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["shards"][0]["file"] = "../secret.safetensors"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="is not an index of prepared data"):
        ShardSource(folder, "train")


@given(data=st.binary(max_size=60))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_codec_of_any_content_is_a_sentence(tmp_path, data):
    (tmp_path / "codec.json").write_bytes(data)
    with pytest.raises(PlaitError):
        load_codec(tmp_path)
