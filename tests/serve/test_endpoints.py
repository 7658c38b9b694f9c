"""Every endpoint by the real OpenAI client: answers are those of `Pipeline` with the same seed, in float64."""

import base64
import io
import json

import httpx
import numpy as np
import openai
import pytest
import soundfile
from helpers.served import SIDE, pixels_of, served, small_pipeline
from PIL import Image

from plait.config.generation import SamplingConfig

PIXELS = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(pixels=PIXELS) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seconds: float = 0.1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(int(16000 * seconds)) / 9).astype(np.float32), 16000, format="WAV")
    return buffer.getvalue()


def item(data: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "plain"])
def both(request, tmp_path_factory):
    pipeline = small_pipeline(tmp_path_factory.mktemp("model"), chat=request.param)
    with served(pipeline) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield pipeline, client, request.param


def asked(pipeline, chat: bool, content, output, **settings):
    """Return what `Pipeline` says to one message of the user."""
    if chat:
        return pipeline.chat([{"role": "user", "content": content}], output, **settings)
    parts = [content] if isinstance(content, str) else content
    prompt = [p if isinstance(p, str) else p.get("text") or {"image": PIXELS} for p in parts]
    return pipeline.generate([prompt], output, **settings)[0]


def test_a_text_is_that_of_the_pipeline(both):
    pipeline, client, chat = both
    answer = client.chat.completions.create(model="small", seed=7, messages=[{"role": "user", "content": "a fox"}])
    expected = asked(pipeline, chat, "a fox", "text", seed=7)
    assert answer.choices[0].message.content == expected.text != ""
    assert answer.choices[0].finish_reason == ("length" if expected.result.stopped == "length" else "stop")
    assert answer.usage.completion_tokens == sum(map(len, expected.result.parts))
    assert answer.usage.prompt_tokens == sum(map(len, expected.result.request.prompt)) and answer.seed == 7


def test_streamed_pieces_are_the_whole_answer(both):
    _, client, _ = both
    request = {"model": "small", "seed": 3, "messages": [{"role": "user", "content": "a fox"}], "n": 3}
    whole = client.chat.completions.create(**request)
    texts, ends, usage = [""] * 3, {}, None
    for chunk in client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    assert texts == [c.message.content for c in whole.choices] and len(set(texts)) > 1
    assert ends == {c.index: c.finish_reason for c in whole.choices} and usage == whole.usage


def test_an_image_is_read(both):
    pipeline, client, chat = both
    content = [{"type": "text", "text": "what is"}, item(png())]
    answer = client.chat.completions.create(model="", seed=5, messages=[{"role": "user", "content": content}])
    given = [content[0], {"type": "image", "image": Image.fromarray(PIXELS)}] if chat else content
    assert answer.choices[0].message.content == asked(pipeline, chat, given, "text", seed=5).text


def test_a_recording_is_read(both):
    _, client, _ = both
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
    messages = [{"role": "user", "content": [sound, {"type": "text", "text": "?"}]}]
    answers = [client.chat.completions.create(model="", seed=5, messages=messages) for _ in range(2)]
    assert answers[0].choices == answers[1].choices and answers[0].usage.prompt_tokens > 16


def test_several_modalities_leave_the_choice_to_the_model(both):
    """An ordered list of parts, where something beside text was made; the same parts as a stream."""
    pipeline, client, chat = both
    request = {
        "model": "",
        "messages": [{"role": "user", "content": "a fox"}],
        "modalities": ["text", "image", "audio"],
    }
    kinds = set()
    for seed in range(60):
        if len(kinds) == 3:
            break
        answer = client.chat.completions.create(**request, seed=seed)
        expected = asked(pipeline, chat, "a fox", None, seed=seed).output
        content = answer.choices[0].message.content
        if isinstance(content, str):
            assert content == "".join(media for _, media in expected)
            continue
        merged = {"image_url": "image", "audio": "speech", "text": "text"}
        assert [merged[part["type"]] for part in content] == [name for name, _ in expected]
        streamed = [
            choice.delta.segment["kind"]
            for chunk in client.chat.completions.create(**request, seed=seed, stream=True)
            for choice in chunk.choices
            if getattr(choice.delta, "segment", None)
        ]
        assert streamed == [{"speech": "audio"}.get(n, n) for n, _ in expected if n != "text"]
        kinds |= {part["type"] for part in content}
    assert kinds == {"text", "image_url", "audio"}


def test_images_are_made(both):
    pipeline, client, _ = both
    answer = client.images.generate(model="small", prompt="a fox", n=2, size=f"{SIDE}x{SIDE}",
                                    extra_body={"seed": 4, "num_inference_steps": 3})  # fmt: skip
    steps = {"image": SamplingConfig(steps=3)}
    expected = pipeline.generate(["a fox", "a fox"], "image", seed=4, sampling=steps)
    for data, sample in zip(answer.data, expected, strict=True):
        np.testing.assert_array_equal(pixels_of(data.b64_json), sample.output[0][1])


def test_images_are_edited(both):
    pipeline, client, _ = both
    answer = client.images.edit(model="small", prompt="a fox", image=("a.png", png()), extra_body={"seed": 4})
    (sample,) = pipeline.generate([[{"image": PIXELS}, "a fox"]], "image", seed=4)
    np.testing.assert_array_equal(pixels_of(answer.data[0].b64_json), sample.output[0][1])


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "opus", "pcm"])
def test_speech_is_made(both, form):
    pipeline, client, _ = both
    answer = client.audio.speech.create(model="small", input="a fox", voice="default", response_format=form,
                                        extra_body={"seed": 2})  # fmt: skip
    (sample,) = pipeline.generate(["a fox"], "speech", seed=2)
    samples = sample.output[0][1]
    if form == "pcm":
        made = np.frombuffer(answer.content, "<i2") / 32767
    else:
        made, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
        assert form == "opus" or rate == 16000
    if form in ("wav", "flac", "pcm"):
        np.testing.assert_allclose(made, np.clip(samples, -1, 1), atol=1e-4)
    else:
        assert len(made) > 0


def test_recordings_are_written_down(both):
    pipeline, client, _ = both
    answer = client.audio.transcriptions.create(model="small", file=("a.wav", wav()), extra_body={"seed": 3})
    plain = client.audio.transcriptions.create(model="small", file=("a.wav", wav()), response_format="text",
                                               extra_body={"seed": 3})  # fmt: skip
    sound, _ = soundfile.read(io.BytesIO(wav()), dtype="float32")
    (sample,) = pipeline.generate([sound], "text", seed=3)
    assert answer.text == sample.text == plain


def test_previews_come_before_the_image(both):
    _, client, _ = both
    stream = client.chat.completions.create(model="", messages=[{"role": "user", "content": "a fox"}], stream=True,
                                            extra_body={"modalities": ["image"], "previews": 3, "seed": 1})  # fmt: skip
    segments = [c.delta.segment for chunk in stream for c in chunk.choices if getattr(c.delta, "segment", None)]
    assert [s.get("preview", False) for s in segments] == [True, True, True, False]
    levels = [s["level"] for s in segments[:-1]]
    assert levels == sorted(levels, reverse=True) and len({s["data"] for s in segments}) == 4
    assert all(pixels_of(s["data"]).shape == (SIDE, SIDE, 3) for s in segments)


def test_a_text_stops_where_it_is_told_to(both):
    _, client, _ = both
    request = {"model": "", "seed": 1, "messages": [{"role": "user", "content": "a fox"}], "max_tokens": 40}
    whole = client.chat.completions.create(**request).choices[0].message.content
    stop = whole[3:5]
    cut = client.chat.completions.create(**request, stop=[stop, "\0never"]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"
    pieces = client.chat.completions.create(**request, stop=stop, stream=True)
    assert "".join(c.delta.content or "" for p in pieces for c in p.choices) == cut.message.content


def test_logprobs_come_with_the_text(both):
    _, client, _ = both
    request = {"model": "", "seed": 1, "messages": [{"role": "user", "content": "a fox"}], "logprobs": True,
               "top_logprobs": 3}  # fmt: skip
    (whole,) = client.chat.completions.create(**request).choices
    tokens = whole.logprobs.content
    assert "".join(t.token for t in tokens if "\ufffd" not in t.token) in whole.message.content.replace("\ufffd", "")
    assert all(len(t.top_logprobs) == 3 and t.logprob <= t.top_logprobs[0].logprob for t in tokens)
    stream = client.chat.completions.create(**request, stream=True)
    pieces = [t for c in stream for choice in c.choices if choice.logprobs for t in choice.logprobs.content]
    assert pieces == tokens


def test_models_health_and_figures(both):
    _, client, _ = both
    (model,) = client.models.list().data
    assert model.id == "small" and model.input_modalities == ["text", "image", "audio"]
    assert client.models.retrieve("small").id == "small"
    base = str(client.base_url).removesuffix("/v1/")
    assert httpx.get(f"{base}/health").json() == {"status": "ok"}
    figures = httpx.get(f"{base}/metrics").text
    for name in ("plait_queue", "plait_rows", "plait_tokens_total", "plait_first_token_seconds", "plait_cache_share"):
        assert name in figures
    assert 'plait_requests_total{endpoint="/v1/chat/completions",status="200"}' in figures
    assert json.loads(httpx.get(f"{base}/openapi.json").text)["paths"].keys() >= {"/v1/images/edits"}
