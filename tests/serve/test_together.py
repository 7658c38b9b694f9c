"""Many clients at once: everybody gets the answer that is theirs, whatever else is under way."""

import concurrent.futures
import json
import random
import socket

import httpx
import numpy as np
import pytest
from helpers.served import pixels_of, served, small_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return small_pipeline(tmp_path_factory.mktemp("model"), chat=True)


def test_answers_do_not_depend_on_who_else_asks(pipeline):
    """Text, images and sound together in one batch, some clients leaving: each answer is that of the pipeline alone."""
    draw = random.Random(0)
    with served(pipeline, max_queue=500) as address, httpx.Client(base_url=address, timeout=300) as client:

        def ask(seed: int) -> tuple[int, str, object]:
            words, kind = f"a fox {seed % 7}", ("text", "image", "speech", "gone")[seed % 4]
            if kind == "gone":
                leave(address, words, seed)
                return seed, kind, None
            if kind == "text":
                body = {"messages": [{"role": "user", "content": words}], "seed": seed}
                return seed, kind, client.post("/v1/chat/completions", json=body).json()
            if kind == "image":
                body = {"prompt": words, "seed": seed}
                return seed, kind, client.post("/v1/images/generations", json=body).json()
            body = {"input": words, "seed": seed, "response_format": "pcm"}
            return seed, kind, client.post("/v1/audio/speech", json=body).content

        seeds = list(range(64))
        draw.shuffle(seeds)
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(ask, seeds))
    for seed, kind, answer in answers:
        words = f"a fox {seed % 7}"
        if kind == "text":
            expected = pipeline.chat([{"role": "user", "content": words}], seed=seed)
            assert answer["choices"][0]["message"]["content"] == expected.text
        elif kind == "image":
            (sample,) = pipeline.generate([words], "image", seed=seed)
            np.testing.assert_array_equal(pixels_of(answer["data"][0]["b64_json"]), sample.output[0][1])
        elif kind == "speech":
            (sample,) = pipeline.generate([words], "speech", seed=seed)
            samples = (np.clip(sample.output[0][1], -1, 1) * 32767).astype("<i2")
            np.testing.assert_array_equal(np.frombuffer(answer, "<i2"), samples)


def leave(address: str, words: str, seed: int) -> None:
    """Ask, and leave without reading the answer."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps(
        {"messages": [{"role": "user", "content": words}], "seed": seed, "stream": seed % 8 == 3}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
