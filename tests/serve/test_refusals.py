"""What a server refuses: one sentence that names the field, the status that fits, and it serves on."""

import base64
import concurrent.futures
import io
import json
import socket
import time

import httpx
import numpy as np
import pytest
import soundfile
from helpers.served import served, small_pipeline
from PIL import Image

KEY = "a-key-of-the-tests"
SAY = {"messages": [{"role": "user", "content": "a fox"}]}


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(int(8000 * seconds), np.float32), 8000, format="WAV")
    return buffer.getvalue()


def image(url: str) -> dict:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def data(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return small_pipeline(tmp_path_factory.mktemp("model"), chat=True)


@pytest.fixture(scope="module")
def client(pipeline):
    pipeline.tasks = {"text,image": 1.0}  # nothing teaches it to edit
    limits = {"max_body": 200_000, "max_pixels": 10_000, "max_seconds": 2.0}
    with served(pipeline, **limits) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.mark.parametrize(("path", "body", "status", "param", "sentence"), [
    ("chat/completions", {}, 400, "messages", "messages: it is missing, it must be given"),
    ("chat/completions", SAY | {"temprature": 1}, 400, "temprature",
     "temprature: unknown field, take it out; did you mean 'temperature'?"),
    ("chat/completions", SAY | {"temperature": "hot"}, 400, "temperature", "temperature: 'hot' is not allowed (input"),
    ("chat/completions", SAY | {"temperature": -1}, 400, "temperature", "temperature: -1 is not allowed (input should"),
    ("chat/completions", SAY | {"frequency_penalty": 0.5}, 400, "frequency_penalty", "frequency_penalty: 0.5 is not"),
    ("chat/completions", SAY | {"top_logprobs": 2}, 400, "top_logprobs", "top_logprobs: 2 is not allowed"),
    ("chat/completions", SAY | {"tools": []}, 400, "tools", "tools: unknown field"),
    ("chat/completions", SAY | {"model": "gpt-4"}, 404, "model",
     "model: 'gpt-4' is not served here, it must be 'small'"),
    ("chat/completions", SAY | {"modalities": ["video"]}, 400, "modalities", "video"),
    ("chat/completions", SAY | {"previews": 3}, 400, "previews",
     "previews: 3 is not allowed, it must be left out unless stream"),
    ("chat/completions", SAY | {"n": 99}, 400, "n", "n: 99 is not allowed"),
    ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role", "'robot' is not"),
    ("chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages",
     "messages: the last one is the assistant's"),
    ("chat/completions", image("/etc/passwd"), 400, None, "no file of the server is read"),
    ("chat/completions", image("file:///etc/passwd"), 400, None, "nothing is fetched"),
    ("chat/completions", image("http://127.0.0.1:1/x.png"), 400, None, "nothing is fetched"),
    ("chat/completions", image("data:image/png;base64,!!!"), 400, None, "is not base64"),
    ("chat/completions", image(data(b"no image")), 400, None, "not a readable image"),
    ("chat/completions", image(data(png(200, 100))), 400, "image", "20,000 pixels are not allowed, at most 10,000"),
    ("chat/completions", SAY | {"messages": [{"role": "user", "content": "x" * 3000}]}, 400, None, "below 512 tokens"),
    ("images/generations", {"prompt": "a fox", "size": "1024x1024"}, 400, "size", "it must be auto or 16x16"),
    ("images/generations", {"prompt": "a fox", "response_format": "url"}, 400, "response_format",
     "'url' is not allowed"),
    ("audio/speech", {"input": "a fox", "voice": "alloy"}, 400, "voice", "'alloy' is not allowed"),
    ("audio/speech", {"input": "a fox", "response_format": "aac"}, 400, "response_format", "'aac' is not allowed"),
    ("embeddings", {}, 404, None, "there is no /v1/embeddings"),
])  # fmt: skip
def test_one_sentence_that_names_the_field(client, path, body, status, param, sentence):
    answer = client.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and sentence in error["message"], error
    assert "\n" not in error["message"] and len(error["message"]) < 600
    assert param is None or error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000], ids=str)
def test_what_is_no_json_of_a_request(client, body):
    answer = client.post("/v1/chat/completions", content=body[:150_000], headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_forms_that_are_refused(client):
    files = {"file": ("a.wav", wav(0.1))}
    for path, kind, sentence in (
        ("audio/transcriptions", {"data": {"x": "1"}}, "must be multipart/form-data"),
        ("audio/transcriptions", {"files": files, "data": {"lang": "en"}}, "lang"),
        ("audio/transcriptions", {"files": {"file": ("a.wav", wav(3))}}, "3 s are not allowed, at most 2"),
        ("audio/transcriptions", {"files": {"file": ("a.wav", b"no sound")}}, "is not audio"),
        ("audio/transcriptions", {"files": {"image": ("a.wav", wav(0.1))}}, "image"),
        ("audio/transcriptions", {"files": [("file", ("a.wav", wav(0.1))), ("file", ("b.wav", wav(0.1)))]}, "2 files"),
        (
            "images/edits",
            {"files": {"image": ("a.png", png(9, 9))}, "data": {"prompt": "x"}},
            "was not trained to make",
        ),
        ("images/edits", {"files": {"image": ("a.png", png(9, 9))}}, "prompt: it is missing"),
    ):
        answer = client.post(f"/v1/{path}", **kind)
        assert answer.status_code == 400 and sentence in answer.json()["error"]["message"], answer.text


def test_bodies_that_are_too_large(client):
    large = json.dumps(SAY | {"user": "x" * 300_000}).encode()

    def in_pieces():
        for start in range(0, len(large), 1 << 14):
            yield large[start : start + (1 << 14)]

    for content in (large, in_pieces()):
        try:
            answer = client.post("/v1/chat/completions", content=content)
        except httpx.WriteError:  # the server closed the connection before all was sent
            continue
        assert answer.status_code == 413 and "at most 200,000 bytes" in answer.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json=SAY).status_code == 200


def test_a_key_is_asked_for(pipeline):
    with served(pipeline, key=KEY) as address, httpx.Client(base_url=address, timeout=60) as client:
        for header in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": KEY},
            {"Authorization": "Basic " + KEY},
        ):
            for path in ("/v1/models", "/metrics", "/samples"):
                answer = client.get(path, headers=header)
                assert answer.status_code == 401 and "key" in answer.json()["error"]["message"]
        assert client.get("/health").status_code == client.get("/").status_code == 200
        answer = client.post("/v1/chat/completions", json=SAY, headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200


def test_a_full_queue_says_when_to_come_again(tmp_path):
    """Eight rows and two that wait: the others are told at once, and those that wait are answered."""
    slow = small_pipeline(tmp_path, chat=True, steps=300)
    with served(slow, max_queue=2) as address, httpx.Client(base_url=address, timeout=120) as client:

        def ask(_) -> httpx.Response:
            return client.post("/v1/images/generations", json={"prompt": "a fox"})

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(ask, range(24)))
        counts = {status: [a.status_code for a in answers].count(status) for status in (200, 429)}
        assert sum(counts.values()) == 24 and 10 <= counts[200] < 24
        refused = next(a for a in answers if a.status_code == 429)
        assert refused.headers["Retry-After"] == "1" and "queue is full" in refused.json()["error"]["message"]


def test_an_answer_that_takes_too_long(tmp_path):
    slow = small_pipeline(tmp_path, chat=True, steps=1000)
    with served(slow, timeout=0.2) as address, httpx.Client(base_url=address, timeout=60) as client:
        answer = client.post("/v1/images/generations", json={"prompt": "a fox"})
        assert answer.status_code == 504 and "--timeout" in answer.json()["error"]["message"]
        assert rows(client) == 0


def rows(client: httpx.Client, seconds: float = 5.0) -> int:
    """Return how many requests are under way once that no longer changes to 0, within some seconds."""
    until = time.monotonic() + seconds
    while True:
        line = next(x for x in client.get("/metrics").text.splitlines() if x.startswith("plait_rows{"))
        count = int(float(line.rpartition(" ")[2]))
        if not count or time.monotonic() > until:
            return count
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(tmp_path, stream):
    slow = small_pipeline(tmp_path, chat=True, steps=1000)
    with served(slow) as address, httpx.Client(base_url=address, timeout=60) as client:
        host, port = address.removeprefix("http://").split(":")
        body = json.dumps(SAY | {"modalities": ["image"], "stream": stream}).encode()
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()  # fmt: skip
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + body)
            while rows(client, 0) == 0:
                time.sleep(0.01)
        assert rows(client) == 0
        assert client.post("/v1/chat/completions", json=SAY).status_code == 200
