"""A served model: clients at once over one after another, the server's own cost, and text beside images.

    OMP_NUM_THREADS=1 python benchmarks/serving.py runs/quickstart
    OMP_NUM_THREADS=1 transformers serve --port 9000 MODEL        (in another terminal)
    OMP_NUM_THREADS=1 python benchmarks/serving.py smollm2 --against http://127.0.0.1:9000/v1 --model MODEL

`plait serve` runs as a process of its own, this one is its clients. Ratios are taken within one run, on the wall clock.
Prints a table; nothing is written.

clients        texts per second of N clients at once over one client, and over the same of --against if one is named
overhead       seconds of 32 texts (and of 32 images, if the model makes any) that are asked for at once, over those
               through the engine alone
beside images  time to the first token of a text while 16 images are denoised, and with nothing else, with the
               seconds of one denoising step of 16 images
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from plait.codecs.chat import chat_of
from plait.config.shipped import sampling_from
from plait.generate.engine import generate
from plait.generate.pipeline import Pipeline
from plait.generate.prompts import read_chat
from plait.generate.request import Request
from plait.run.load import load

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.ports import free_port

TOKENS = 64
TEXTS = 64
WORDS = "Tell me about the number {}."


@contextlib.contextmanager
def serving(run: str) -> Iterator[str]:
    """Serve a model in another process; yields the address of its endpoints."""
    port = free_port()
    command = [sys.executable, "-m", "plait", "serve", run, "--port", str(port), "--max-queue", "1000"]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while True:
            if server.poll() is not None:
                sys.exit(f"plait serve {run} ended with code {server.returncode}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            time.sleep(0.1)
        yield f"{address}/v1"
        server.terminate()


def body(number: int, model: str) -> dict[str, Any]:
    """Return the request of one text, greedy and as long as it may be."""
    said = [{"role": "user", "content": WORDS.format(number)}]
    return {"model": model, "messages": said, "max_tokens": TOKENS, "temperature": 0, "seed": number}


async def texts(address: str, clients: int, count: int, model: str) -> float:
    """Return tokens per second of some clients that ask one text after another."""
    numbers, made = iter(range(count)), 0
    async with httpx.AsyncClient(timeout=600) as client:

        async def ask() -> None:
            nonlocal made
            for number in numbers:
                answer = await client.post(f"{address}/chat/completions", json=body(number, model))
                answer.raise_for_status()
                made += answer.json()["usage"]["completion_tokens"]

        started = time.monotonic()
        await asyncio.gather(*(ask() for _ in range(clients)))
        return made / (time.monotonic() - started)


async def first_token(address: str, images: int) -> float:
    """Return the seconds to the first piece of a text, while some images are denoised."""
    async with httpx.AsyncClient(timeout=600) as client:
        drawing = [
            asyncio.create_task(client.post(f"{address}/images/generations", json={"prompt": WORDS.format(i)}))
            for i in range(images)
        ]
        await asyncio.sleep(0.3 if images else 0)
        started, seconds = time.monotonic(), 0.0
        async with client.stream("POST", f"{address}/chat/completions", json=body(0, "") | {"stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    seconds = time.monotonic() - started
                    break
        await asyncio.gather(*drawing)
        return seconds


async def images(address: str, count: int) -> float:
    """Return the seconds of some images that are asked for at once."""
    async with httpx.AsyncClient(timeout=600) as client:
        started = time.monotonic()
        asked = [{"prompt": WORDS.format(i), "seed": i} for i in range(count)]
        for answer in await asyncio.gather(*(client.post(f"{address}/images/generations", json=a) for a in asked)):
            answer.raise_for_status()
        return time.monotonic() - started


def alone(pipeline: Pipeline, kind: str, count: int) -> float:
    """Return the seconds of the same texts or images without a server, the image files not counted."""
    layout, codecs = pipeline.model.config.layout, pipeline.codecs
    name = next(n for n in codecs if codecs[n].kind == kind)
    said = [WORDS.format(i) for i in range(count)]
    started = time.monotonic()
    if kind == "text" and chat_of(codecs):
        read = [read_chat([{"role": "user", "content": s}], codecs, layout.host) for s in said]
    else:
        read = [pipeline.read(s) for s in said]
    options = {"temperature": 0.0} if kind == "text" else {}
    sampling = sampling_from(pipeline.config.sampling, pipeline.model.config, options)
    most = pipeline.config.max_tokens | {layout.host: TOKENS}
    requests = [Request(pipeline.encode(m), name, sampling, most, seed=i) for i, m in enumerate(read)]
    results = generate(pipeline.model, requests, **pipeline.engine_settings)
    pipeline.decode([part for result in results for part in result.parts])
    return time.monotonic() - started


def main() -> None:
    """Measure, and print a table."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("run", help="folder of a run, or of a saved model")
    command.add_argument("--against", default="", help="address of another server's endpoints, ending in /v1")
    command.add_argument("--model", default="", help="the other server's name of its model")
    command.add_argument("--texts", type=int, default=TEXTS)
    command.add_argument("--turns", type=int, default=3)
    options = command.parse_args()
    pipeline = load(options.run)
    draws = any(codec.kind == "image" for codec in pipeline.codecs.values())
    with serving(options.run) as address:
        clients(address, options)
        overhead(pipeline, address, "text", options.turns)
        if draws:
            overhead(pipeline, address, "image", options.turns)
            beside_images(pipeline, address, options.turns)


def clients(address: str, options: argparse.Namespace) -> None:
    """Print tokens per second by clients at once."""
    servers = {"plait": (address, "")} | ({"other": (options.against, options.model)} if options.against else {})
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.turns):
        for count in (1, 8, 32):
            for name, (where, model) in servers.items():
                asked = max(count, options.texts // (4 if count == 1 else 1))
                rates.setdefault((name, count), []).append(asyncio.run(texts(where, count, asked, model)))
    for (name, count), values in rates.items():
        over = statistics.median(values) / statistics.median(rates[name, 1])
        print(f"{name:8s} {count:3d} clients  {statistics.median(values):8.1f} tokens/s  {over:5.2f} of one client")
    if options.against:
        for count in (1, 8, 32):
            ratios = [a / b for a, b in zip(rates["plait", count], rates["other", count], strict=True)]
            print(f"plait / other, {count} clients: {statistics.median(ratios):.2f} "
                  f"({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


def overhead(pipeline: Pipeline, address: str, kind: str, turns: int) -> None:
    """Print what the server costs over the engine alone, for requests that are all there at the beginning."""
    pairs = []
    for _ in range(turns + 1):
        served = asyncio.run(images(address, 32)) if kind == "image" else asyncio.run(whole(address, 32))
        pairs.append((served, alone(pipeline, kind, 32)))
    ratios = [a / b for a, b in pairs[1:]]  # the first warms both
    each = statistics.median(1e3 * (a - b) / 32 for a, b in pairs[1:])
    print(f"overhead of 32 {kind}s {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) of the "
          f"engine alone, {each:.2f} ms a request")  # fmt: skip


async def whole(address: str, count: int) -> float:
    """Return the seconds of some texts that are asked for at once."""
    started = time.monotonic()
    await texts(address, count, count, "")
    return time.monotonic() - started


def beside_images(pipeline: Pipeline, address: str, turns: int) -> None:
    """Print the time to the first token with and without images."""
    idle, busy = ([asyncio.run(first_token(address, n)) for _ in range(5 * turns)] for n in (0, 16))
    image = next(n for n, codec in pipeline.codecs.items() if codec.kind == "image")
    steps = pipeline.config.sampling[image].steps
    step = statistics.median(alone(pipeline, "image", 16) for _ in range(turns)) / steps
    print(f"first token {1e3 * statistics.median(idle):.0f} ms with nothing else, "
          f"{1e3 * statistics.median(busy):.0f} ms while 16 images are denoised; one step of these takes about "
          f"{1e3 * step:.0f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
