"""Many clients at once against `plait serve`: everybody is answered, with the answer that is theirs.

    python benchmarks/load.py runs/quickstart                  (500 clients; a few minutes)
    python benchmarks/load.py smollm2 --clients 500
    python benchmarks/load.py runs/quickstart --kills 20       (ends and starts the server at random moments)

A tenth of the clients leave before their answer is there, a tenth send what is malformed or too large. The others ask
for text, images or sound (ids greedy), whole or as a stream, and try again where they are told to (429, 503) or where
the connection breaks. Afterwards each answer is compared with that of `Pipeline` alone, with the same seed: text to the
letter but for near ties of its precision, images and sound by what they are nearest to. Exit code 1 where something is
amiss.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from plait.codecs.chat import chat_of
from plait.config.shipped import sampling_from
from plait.generate.engine import generate
from plait.generate.pipeline import Pipeline
from plait.generate.prompts import read_chat
from plait.generate.request import Request
from plait.run.load import load

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.ports import free_port

THINGS = ("fox", "pear", "helicopter", "octopus", "chicken", "cucumber", "snowflake", "llama", "tangerine", "necktie")
COLOURS = ("blue", "gray", "green", "purple", "yellow", "brown", "pink", "orange", "red")
SECONDS = 600.0
"""Time in which clients that try again must have their answers."""
TOKENS = 24
SECONDS_OF_A_KILL = 8.0
"""Time from one end of the server to the next, about; clients come while it is ended again and again."""
SAME = 0.01
"""Mean difference of two items, as a share of their range, up to which they are the same but for rounding."""
NEAR = {"float32": 2e-3, "bfloat16": 0.13}
"""Two ids whose log-probabilities differ by less are a tie: bfloat16 rounds logits between 16 and 32 to eighths."""


@dataclass
class Asked:
    """One client: what it asks for, and what became of it."""

    number: int
    kind: str
    words: str
    stream: bool = False
    answer: Any = None
    tops: list[Any] = field(default_factory=list)
    tries: int = 0
    delay: float = 0.0
    """Seconds after which it comes."""

    @property
    def body(self) -> dict[str, Any]:
        """The request for chat completions."""
        kind = {"speech": "audio"}.get(self.kind, self.kind)
        said = [{"role": "user", "content": self.words}]
        more = {"logprobs": True, "top_logprobs": 2} if kind == "text" else {}
        temperature = 1.0 if kind == "image" else 0.0
        return {"messages": said, "modalities": [kind], "seed": self.number, "temperature": temperature,
                "max_tokens": TOKENS, "stream": self.stream} | more  # fmt: skip


class Server:
    """`plait serve` as a process, started again where it was ended."""

    def __init__(self, model: str):
        self.port = free_port()
        self.command = [sys.executable, "-m", "plait", "serve", model, "--port", str(self.port), "--max-queue", "64"]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(self.command)
        self.starts = 1

    async def ready(self) -> None:
        """Wait until the model is loaded."""
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    if (await client.get(f"{self.address}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    assert self.process.poll() is None, "the server ended by itself"
                await asyncio.sleep(0.1)

    async def disturb(self, kills: int, draw: random.Random) -> None:
        """End the server at random moments, gently or not, and start it again."""
        for _ in range(kills):
            await asyncio.sleep(draw.uniform(0.5, 4))
            self.process.send_signal(draw.choice([signal.SIGTERM, signal.SIGKILL]))
            while self.process.poll() is None:
                await asyncio.sleep(0.05)
            self.process = subprocess.Popen(self.command)
            self.starts += 1
            await self.ready()

    def memory(self) -> float:
        """Return the memory of the process in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0]) / 1e3


def clients_of(pipeline: Pipeline, count: int, draw: random.Random, *, seconds: float) -> list[Asked]:
    """Return what each client does; they come at random moments within some seconds."""
    kinds = [{"audio": "speech"}.get(c.kind, c.kind) for c in pipeline.codecs.values() if not c.reads_only]
    clients = []
    for number in range(count):
        words = f"a {draw.choice(THINGS)} on a {draw.choice(COLOURS)} background"
        kind = "leaves" if number % 10 == 3 else "malformed" if number % 10 == 7 else draw.choice(sorted(set(kinds)))
        clients.append(Asked(number, kind, words, stream=draw.random() < 0.5, delay=draw.uniform(0, seconds)))
    draw.shuffle(clients)
    return clients


async def ask(server: Server, asked: Asked, client: httpx.AsyncClient, deadline: float) -> None:
    """Do what a client does, until it has its answer or the time is over."""
    await asyncio.sleep(asked.delay)
    while time.monotonic() < deadline:
        asked.tries += 1
        try:
            if asked.kind == "leaves":
                await leave(server, asked)
                asked.answer = "left"
            elif asked.kind == "malformed":
                asked.answer = await malformed(server, asked, client)
            else:
                asked.answer = await one_answer(server, asked, client)
        except httpx.TransportError:
            await asyncio.sleep(random.uniform(0.2, 1.0))
            continue
        if asked.answer is not None:
            break
        await asyncio.sleep(random.uniform(0.5, 2.0))


async def one_answer(server: Server, asked: Asked, client: httpx.AsyncClient) -> Any:
    """Return the answer of a well-formed request; None where the server says to try again."""
    url = f"{server.address}/v1/chat/completions"
    if not asked.stream:
        answer = await client.post(url, json=asked.body)
        if answer.status_code in (429, 503):
            return None
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        asked.tops = [t["top_logprobs"] for t in (choice["logprobs"] or {"content": []})["content"]]
        return content_of(choice["message"]["content"])
    text, segments, tops, ended = "", [], [], False
    async with client.stream("POST", url, json=asked.body) as answer:
        if answer.status_code in (429, 503):
            return None
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                ended = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    return None
                (choice,) = event["choices"]
                text += choice["delta"].get("content") or ""
                segments += [choice["delta"]["segment"]["data"]] if "segment" in choice["delta"] else []
                tops += [t["top_logprobs"] for t in (choice["logprobs"] or {"content": []})["content"]]
    if not ended:
        raise httpx.ReadError("the stream broke off")
    asked.tops = tops
    return base64.b64decode(segments[0]) if segments else text


def content_of(content: Any) -> Any:
    """Return a message's text, or the bytes of its one item."""
    if isinstance(content, str):
        return content
    (item,) = content
    data = item["image_url"]["url"].partition(",")[2] if item["type"] == "image_url" else item["audio"]["data"]
    return base64.b64decode(data)


async def leave(server: Server, asked: Asked) -> None:
    """Ask, and go away after a moment without reading the answer."""
    body = json.dumps(asked.body | {"modalities": ["text"], "temperature": 1.0}).encode()
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
        await writer.drain()
        await asyncio.sleep(random.uniform(0, 0.5))
        writer.close()
    except OSError as error:
        raise httpx.ConnectError(str(error)) from None


async def malformed(server: Server, asked: Asked, client: httpx.AsyncClient) -> str | None:
    """Send what is no request; the answer must be a refusal."""
    url = f"{server.address}/v1/chat/completions"
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [
        b"{", b"\xff" * 1000, json.dumps(asked.body | {"temprature": 1}).encode(),
        json.dumps({"messages": [{"role": "user", "content": [image]}]}).encode(), b"x" * 40_000_000,
    ][asked.number // 10 % 5]  # fmt: skip
    try:
        answer = await client.post(url, content=content, headers={"Content-Type": "application/json"})
    except (httpx.WriteError, httpx.ReadError):
        if len(content) < 1_000_000:
            raise
        return "refused"  # the connection was closed before all of it was sent
    if answer.status_code in (429, 503):
        return None
    assert answer.status_code in (400, 413), answer.status_code
    return "refused"


def wrong(pipeline: Pipeline, clients: list[Asked]) -> list[str]:
    """Return what is amiss with the answers: each is compared with what the pipeline alone makes."""
    amiss: list[str] = []
    for kind in ("text", "image", "speech"):
        asked = [c for c in clients if c.kind == kind and c.answer is not None]
        unlike = {c.number if kind == "image" else c.words: c for c in asked}  # ids are greedy, whatever the seed
        made_alone = dict(zip(unlike, alone(pipeline, list(unlike.values())), strict=True))
        expected = [made_alone[c.number if kind == "image" else c.words] for c in asked]
        if kind == "text":
            same = sum(c.answer == text for c, text in zip(asked, expected, strict=True))
            print(f"{kind}: {same} of {len(asked)} to the letter")
            for c, wanted in zip(asked, expected, strict=True):
                if c.answer != wanted and (apart := gap(c, wanted)) >= NEAR[pipeline.config.precision]:
                    amiss.append(f"text {c.number}: {c.answer!r}, not {wanted!r}, where two ids are {apart:.4f} apart")
            continue
        made = [array_of(kind, c.answer) for c in asked]
        same = 0
        for i, c in enumerate(asked):
            far = [distance(made[i], other) for other in expected]
            same += far[i] < SAME
            nearest = asked[int(np.argmin(far))]
            if far[i] >= SAME and nearest.words != c.words:
                amiss.append(f"{kind} {c.number} ({c.words}): it is nearest to that of {nearest.words!r}")
        print(f"{kind}: {same} of {len(asked)} the same but for rounding, none nearer to an answer to other words"
              if not amiss else f"{kind}: {same} of {len(asked)} the same")  # fmt: skip
    return amiss


def alone(pipeline: Pipeline, clients: list[Asked]) -> list[Any]:
    """Return what the engine makes for each client, without a server."""
    host, codecs = pipeline.model.config.layout.host, pipeline.codecs
    requests = []
    for c in clients:
        said = [{"role": "user", "content": c.words}]
        media = read_chat(said, codecs, host) if chat_of(codecs) else pipeline.read(c.words)
        temperature = {"temperature": c.body["temperature"]}
        sampling = sampling_from(pipeline.config.sampling, pipeline.model.config, temperature)
        most = pipeline.config.max_tokens | {host: TOKENS}
        requests.append(Request(pipeline.encode(media), c.kind, sampling, most, seed=c.number))
    results = generate(pipeline.model, requests, **pipeline.engine_settings)
    if clients and clients[0].kind == "text":
        return ["".join(str(media) for _, media in pipeline.decode(r.parts)) for r in results]
    made = [np.asarray(media, np.float32) for _, media in pipeline.decode([r.parts[-1] for r in results])]
    return [spectrum(samples) for samples in made] if made and made[0].ndim == 1 else made


def array_of(kind: str, data: bytes) -> np.ndarray:
    """Return an image, or the spectrum of a recording, as an array."""
    if kind == "image":
        import PIL.Image

        return np.asarray(PIL.Image.open(io.BytesIO(data)), np.float32)
    import soundfile

    return spectrum(soundfile.read(io.BytesIO(data), dtype="float32")[0])


def spectrum(samples: np.ndarray) -> np.ndarray:
    """Return the loudness of frequencies over time: one id that came out otherwise changes little of it."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, (0, 400)), 400)[::160]
    return np.log1p(100 * np.abs(np.fft.rfft(frames * np.hanning(400))))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return how far two items are apart, as a share of their range; recordings as far as both last."""
    a, b = a[: len(b)], b[: len(a)]
    return float(np.abs(a - b).mean() / max(1e-6, np.ptp(b)))


def gap(asked: Asked, expected: str) -> float:
    """Return how far the two likeliest ids were apart where an answer left the expected one."""
    text = ""
    for top in asked.tops:
        best, second = sorted(top, key=lambda t: -t["logprob"])
        if not expected.startswith(text + best["token"]):
            return float(best["logprob"] - second["logprob"])
        text += best["token"]
    return float("inf")


async def storm(server: Server, clients: list[Asked], kills: int, draw: random.Random) -> list[float]:
    """Let all clients loose at once; returns the server's memory over time."""
    memory: list[float] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(1)
            if server.process.poll() is None:
                memory.append(server.memory())

    await server.ready()
    watching = asyncio.create_task(watch())
    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(timeout=SECONDS, limits=limits) as client:
        deadline = time.monotonic() + SECONDS
        disturbing = asyncio.create_task(server.disturb(kills, draw))
        await asyncio.gather(*(ask(server, c, client, deadline) for c in clients))
        disturbing.cancel()
        figures = (await client.get(f"{server.address}/metrics")).text if not kills else ""
    watching.cancel()
    rows = [line for line in figures.splitlines() if line.startswith(("plait_rows{", "plait_queue{"))]
    assert all(line.endswith(" 0.0") for line in rows), rows
    return memory


def main() -> int:
    """Run the storm, and compare."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("model", help="folder of a run, or of a saved model")
    command.add_argument("--clients", type=int, default=500)
    command.add_argument("--kills", type=int, default=0)
    command.add_argument("--seed", type=int, default=0)
    options = command.parse_args()
    draw = random.Random(options.seed)
    pipeline = load(options.model)
    clients = clients_of(pipeline, options.clients, draw, seconds=SECONDS_OF_A_KILL * options.kills)
    server = Server(options.model)
    started = time.monotonic()
    memory = asyncio.run(storm(server, clients, options.kills, draw))
    seconds = time.monotonic() - started
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(timeout=60)
    well = [c for c in clients if c.kind not in ("leaves", "malformed")]
    answered = [c for c in well if c.answer is not None]
    print(f"{len(clients)} clients, {dict(Counter(c.kind for c in clients))}, {seconds:.0f} s, {server.starts} starts")
    print(f"well-formed: {len(answered)} of {len(well)} answered, {sum(c.tries for c in well)} tries")
    half = memory[len(memory) // 2 :] or [0.0]
    quarters = [f"{memory[len(memory) * k // 4]:.0f}" for k in range(4)] if memory else []
    print(f"memory: {', '.join(quarters)}, at the end {half[-1]:.0f} MB; exit code {code}")
    amiss = wrong(pipeline, clients)
    amiss += [f"malformed {c.number}: not refused" for c in clients if c.kind == "malformed" and c.answer != "refused"]
    amiss += [] if len(answered) >= 0.95 * len(well) else ["fewer than 95% were answered"]
    amiss += [] if code == 0 else [f"the server ended with {code}"]
    amiss += [] if options.kills or server.starts == 1 else ["the server was started again"]
    print(*amiss[:20], sep="\n")
    return int(bool(amiss))


if __name__ == "__main__":
    sys.exit(main())
