"""Conversations with a model: its chat template writes them, it stops where its turn ends, and media are read."""

import base64
import copy
import dataclasses

import numpy as np
import pytest
import torch
from helpers.chat import CHATML, LLAMA, chat_codec
from helpers.models import model_config
from PIL import Image

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.codecs.chat import chat_of
from plait.codecs.image_pixels import ImagePixelCodec, ImagePixelOptions
from plait.codecs.text import BytePairCodec, BytePairOptions, PretrainedTokenizerCodec
from plait.common.errors import ConfigError, DataError
from plait.config.generation import GenerateConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.generate.pipeline import Pipeline
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums

SIDE = 16
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
QUESTION = [{"role": "user", "content": "What is it?"}]
GREEDY = {"sampling": {"text": SamplingConfig(temperature=0)}}


def pixels() -> ImagePixelCodec:
    codec = ImagePixelCodec(ImagePixelOptions(size=SIDE))
    codec.fit([PIXELS], minutes=0, seed=0, folder=None, progress=lambda *_: None)
    return codec


def build(codec: PretrainedTokenizerCodec) -> Pipeline:
    """Return a random model with a chat template's tokenizer and images of pixels."""
    image = pixels()
    text = ModalityConfig(vocab_size=codec.vocab_size)
    pictured = ModalityConfig(objective="diffusion", attention="bidirectional", latent_channels=image.latent_channels,
                              patch_size=image.patch_size)  # fmt: skip
    config = ModelConfig({"text": text, "image": pictured}, width=32, num_heads=2, num_layers=2,
                         bos=codec.bos, eos=codec.eos, stops=codec.stops)  # fmt: skip
    torch.manual_seed(0)
    model = MixtureOfTransformers(config).requires_grad_(False)
    return Pipeline(model, {"text": codec, "image": image}, GenerateConfig(max_tokens={"text": 12}))


@pytest.fixture(scope="module", params=[CHATML, LLAMA], ids=["chatml", "llama"])
def pipeline(request, tmp_path_factory) -> Pipeline:
    eos = "<|im_end|>" if request.param is CHATML else "<|endoftext|>"
    return build(chat_codec(tmp_path_factory.mktemp("tokenizer"), request.param, eos=eos))


def test_what_is_asked_is_what_the_template_writes(pipeline):
    sample = pipeline.chat(QUESTION)
    tokenizer = pipeline.codecs["text"].tokenizer
    written = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert sample.prompt == [("text", written)]
    (part,) = sample.result.request.prompt
    assert part.ids.tolist() == tokenizer(written, add_special_tokens=False)["input_ids"]
    assert sample.text == "".join(text for _, text in sample.output) and sample.result.request.output == "text"


def test_a_model_that_is_taught_a_conversation_says_it_and_stops(pipeline):
    """What is learned ends with the mark of the turn, and what is generated ends there."""
    codec, model = pipeline.codecs["text"], copy.deepcopy(pipeline.model).requires_grad_(True)
    said = [*QUESTION, {"role": "assistant", "content": "A fox."}, {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes."}]  # fmt: skip
    rows = chat_of(pipeline.codecs).row({"messages": said})["parts"]
    parts = [Part("text", codec.encode([row["text"]])[0].ids, loss=float(row.get("loss", True))) for row in rows]
    batch = pack([Document(parts)], model.config)
    ids = [i for part in parts for i in part.ids.tolist()]
    assert batch.ids.tolist() == ids and (model.config.bos == "none" or ids.count(model.config.bos) == 1)
    answers = sum(len(part) for part in parts if part.loss)
    assert batch.counts[0] == answers  # no <eos> of plait's own is learned behind the template's
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = loss_sums(model, model(batch), batch).sum() / answers
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    taught = Pipeline(model.requires_grad_(False), pipeline.codecs, pipeline.config)
    sample = taught.chat(QUESTION, **GREEDY)
    assert sample.text == "A fox." and sample.result.stopped == "eos"
    assert taught.chat([*QUESTION, sample.message, {"role": "user", "content": "Sure?"}], **GREEDY).text == "Yes."


def test_what_was_said_is_part_of_the_next_question(pipeline):
    sample = pipeline.chat(QUESTION)
    messages = [*QUESTION, sample.message, {"role": "user", "content": "Sure?"}]
    tokenizer = pipeline.codecs["text"].tokenizer
    said = [QUESTION[0], {"role": "assistant", "content": sample.text}, messages[-1]]
    written = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert pipeline.chat(messages).prompt == [("text", written)]
    silent = dataclasses.replace(sample, output=[])
    assert silent.text == "" and silent.message == {"role": "assistant", "content": ""}
    pipeline.chat([*QUESTION, silent.message, QUESTION[0]])


def test_images_of_every_kind_are_read(pipeline, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    data = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
    values = ["a.png", f"data:image/png;base64,{data}", PIXELS, Image.fromarray(PIXELS),
              (tmp_path / "a.png").read_bytes(), {"bytes": None, "path": "a.png"}]  # fmt: skip
    for value in values:
        messages = [{"role": "user", "content": [{"type": "image", "image": value}, {"type": "text", "text": "?"}]}]
        sample = pipeline.chat(messages, base=tmp_path)
        assert [name for name, _ in sample.prompt] == ["text", "image", "text"]
        np.testing.assert_array_equal(sample.prompt[1][1], PIXELS)
    row = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>?"}]}
    assert [name for name, _ in pipeline.chat(row, base=tmp_path).prompt] == ["text", "image", "text"]


def test_an_image_can_be_the_answer_and_then_be_asked_about(pipeline):
    settings = {"grids": {"image": (2, 2)}, "sampling": {"image": SamplingConfig(steps=2)}}
    sample = pipeline.chat(QUESTION, "image", **settings)
    assert [name for name, _ in sample.output] == ["image"] and sample.text == ""
    after = pipeline.chat([*QUESTION, sample.message, {"role": "user", "content": "What is that?"}])
    np.testing.assert_array_equal(after.prompt[1][1], sample.output[0][1])


def test_what_cannot_be_answered(pipeline):
    with pytest.raises(DataError, match="the last one is the assistant's"):
        pipeline.chat([*QUESTION, {"role": "assistant", "content": "A fox."}])
    with pytest.raises(DataError, match="message 1: role 'usr' is not allowed"):
        pipeline.chat([{"role": "usr", "content": "Hi"}])
    with pytest.raises(ConfigError, match="prompt: unknown name 'audio', allowed: image, text"):
        pipeline.chat([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}])
    with pytest.raises(ConfigError, match="'sound'"):
        pipeline.chat(QUESTION, "sound")
    codec = BytePairCodec(BytePairOptions(vocab_size=256))
    codec.fit(["a fox"], minutes=0, seed=0, folder=None, progress=lambda *_: None)
    plain = Pipeline(MixtureOfTransformers(model_config()), {"text": codec}, GenerateConfig())
    with pytest.raises(ConfigError, match=r"chat: the codec of 'text' \('text_bpe'\) has no chat template"):
        plain.chat(QUESTION)
