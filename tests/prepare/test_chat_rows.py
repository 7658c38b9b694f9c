"""Conversations as rows of a source: read by the text codec's chat template, stored with their loss, accounted for."""

import base64
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.chat import chat_codec
from helpers.fake_data import FakeImage, FakeOptions, FakeSpeech
from helpers.manifests import open_source, read_all, write
from helpers.prepared import config_for

from plait.codecs import load_codec
from plait.codecs.base import Encoded
from plait.codecs.chat import LEFT_OUT
from plait.common.errors import ConfigError, DataError
from plait.config.run_records import ModalitySettings
from plait.data.shards import ShardSource, codec_folder, read_index
from plait.prepare.raw import BrokenRow
from plait.prepare.stages import prepare

pytestmark = pytest.mark.usefixtures("fake_codecs")

YES = {"role": "assistant", "content": "Yes."}
TEXTS = ["<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "Yes.<|im_end|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of a tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    chat_codec(folder)
    return folder


@pytest.fixture
def codecs(folder):
    return {"text": chat_codec(folder), "image": FakeImage(FakeOptions()), "speech": FakeSpeech(FakeOptions())}


def about(value, kind: str = "image") -> dict:
    return {"messages": [{"role": "user", "content": [{"type": kind, kind: value}]}, YES], "n": 3}


def test_a_chat_with_an_image_and_one_with_a_recording(media, codecs):
    data = base64.b64encode((media / "good.png").read_bytes()).decode()
    rows = [about("good.png"), about(f"data:image/png;base64,{data}"), about("good.wav", "audio"),
            {"parts": [{"text": "plain"}]}]  # fmt: skip
    first, second, third, plain = read_all(write(media, rows), codecs=codecs)["train"]
    assert [key for key, _ in first.parts] == ["text", "image", "text", "text"]
    assert [value for key, value in first.parts if key == "text"] == TEXTS
    assert first.without_loss == {0, 1, 2} and first.meta == {"n": 3}
    np.testing.assert_array_equal(second.parts[1][1], first.parts[1][1])
    assert third.parts[1][0] == "audio" and third.parts[1][1].shape == (1000,)
    assert plain.parts == [("text", "plain")] and not plain.without_loss


def test_a_broken_chat_is_a_broken_row(media, codecs):
    rows = [about("good.png"), about("none.png"), about("../good.png"), about("https://a.b/c.png"),
            about("cut.png"), {"messages": [{"role": "usr", "content": "Hi"}]}]  # fmt: skip
    _, *broken = read_all(write(media, rows), codecs=codecs)["train"]
    assert all(isinstance(row, BrokenRow) for row in broken) and [row.line for row in broken] == [2, 3, 4, 5, 6]
    reasons = [row.reason for row in broken]
    assert reasons[0] == "part 2 (image): there is no file 'none.png'"
    assert "lies outside of the manifest's folder, which needs prepare.allow_outside: true" in reasons[1]
    assert "message 1, item 1: the address 'https://a.b/c.png' is not allowed" in reasons[2]
    assert reasons[4].startswith("message 1: role 'usr' is not allowed")


def test_conversations_in_parquet(media, codecs):
    png = (media / "good.png").read_bytes()
    chats = [about("good.png")["messages"], [{"role": "user", "content": [{"type": "image"}]}, YES]]
    items = [[{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "?"}]},
              {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]] * 2  # fmt: skip
    images = [[{"bytes": png, "path": "a.png"}], [{"bytes": None, "path": "good.png"}]]
    tables = {
        "structs": {"messages": items, "images": images, "source": ["a", "b"], "vector": [[1.0], [2.0]]},
        "json": {"messages": [json.dumps(c) for c in chats], "image": [None, "good.png"], "source": ["a", "b"]},
        "llava": {"conversations": [[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Yes."}]] * 2,
                  "image": [{"bytes": png, "path": None}] * 2, "id": [1, 2]},
    }  # fmt: skip
    for name, table in tables.items():
        pq.write_table(pa.table(table), media / f"{name}.parquet")
        source = open_source(media / f"{name}.parquet", codecs)
        rows = list(source.read("train", 0, 2))
        for row in rows:
            assert [key for key, _ in row.parts] == ["text", "image", "text", "text"], (name, row)
            assert row.parts[1][1].shape == (20, 30, 3) and row.without_loss == {0, 1, 2}
        assert rows[1].meta == ({"id": 2} if name == "llava" else {"source": "b"})
    account = source._open(0).account
    assert account["form"] == "Parquet of chats" and account["columns"]["parts"] == {
        "conversations": "conversations", "image": "image"}  # fmt: skip
    text = {"text": ["a", "b"], "messages": [json.dumps(c) for c in chats]}
    pq.write_table(pa.table(text), media / "text.parquet")
    rows = read_all(media / "text.parquet", codecs=codecs, columns={"text": "text"})["train"]
    assert [row.parts for row in rows] == [[("text", "a")], [("text", "b")]]


def test_without_a_chat_template_the_sentence_says_what_to_do(tmp_path, folder):
    rows = [{"messages": [{"role": "user", "content": "Hi"}, YES]}]
    (row,) = read_all(write(tmp_path, rows))["train"]
    assert "is read as it is where the text codec has a chat template (codec: text_pretrained" in row.reason
    assert "convert the file: jq -c" in row.reason
    pq.write_table(pa.table({"messages": [json.dumps(rows[0]["messages"])]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="; conversations are read where the text codec has a chat template"):
        read_all(tmp_path / "a.parquet")


def prepared(folder, path, tokenizer, **settings):
    config = config_for(folder, path, ("text", "image"), **settings)
    config.modalities["text"] = ModalitySettings("text_pretrained", {"path": str(tokenizer)})
    return prepare(config)


def test_from_conversations_to_shards(media, folder):
    """Texts, order and loss are those of the template; the splits are drawn by what the conversations say."""
    rows = []
    for i in range(60):
        question = [{"type": "image", "image": "good.png"}, {"type": "text", "text": f"\nIs it {i}?"}]
        rows.append(
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": f"No, {i}."}]}
        )
        rows[i]["messages"] += [{"role": "user", "content": "Thanks"}] * (i == 7)
        rows[i]["messages"] += [{"role": "user", "content": "Draw."},
                                {"role": "assistant", "content": question[:1]}] * (i == 9)  # fmt: skip
    rows[3] = {"messages": []}
    out = media / "prepared"
    figures = prepared(out, write(media, rows, "chats.jsonl"), folder)
    assert figures["documents_train"] + figures["documents_held_out"] == 59 and figures["documents_held_out"] > 3
    assert figures["text_codec_exact"] == 1.0
    assert json.loads((out / "broken.jsonl").read_text())["reason"].startswith("messages: it is empty")
    report = json.loads((out / "report.json").read_text())
    assert report["sources"][0]["remarks"] == {LEFT_OUT: 1} and report["sources"][0]["form"] == "JSON lines"
    codec, index, seen = load_codec(codec_folder(out, "text")), read_index(out), 0
    for split in ("train", "validation"):
        source = ShardSource(out, split, index)
        for i in range(len(source)):
            parts = source.document(i).parts
            texts = [codec.decode([Encoded(p.ids)])[0] for p in parts if p.modality == "text"]
            names = ["text", "image", "text", "text", *["text", "image", "text"] * (len(parts) > 4)]
            assert [p.modality for p in parts] == names
            number = texts[1].split()[2].split("?")[0]
            assert texts[:3] == [TEXTS[0], f"\nIs it {number}?{TEXTS[1]}", f"No, {number}.<|im_end|>"]
            assert [p.loss for p in parts] == [0, 0, 0, 1, *[0, 1, 1] * (len(parts) > 4)]
            assert [p.role for p in parts if p.modality == "image"] == ["understanding", "generation"][
                : len(parts) // 3
            ]
            seen += 1
    assert seen == 59


def test_a_source_of_chats_is_refused_where_nothing_reads_them(media):
    path = write(media, [{"messages": [{"role": "user", "content": "Hi"}, YES]}] * 3, "chats.jsonl")
    with pytest.raises(DataError, match=r"3 of 3 rows .* are broken.*where the text codec has a chat template"):
        prepare(config_for(media / "prepared", path, ("text",)))
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        prepared(media / "others", path, media / "none")
