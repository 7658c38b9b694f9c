"""`plait serve` as a process: it comes up, answers, ends gently at a signal, and says in one sentence why it cannot."""

import asyncio
import concurrent.futures
import json
import os
import queue
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from helpers import language_models as llms
from helpers.ports import free_port
from helpers.served import wait_until_loaded

from plait.cli import main
from plait.common.progress import QuietProgress
from plait.serve.server import listen
from plait.upcycle.write import upcycle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    llms.save(llms.model("llama tied").float(), folder / "source")
    return upcycle(str(folder / "source"), str(folder / "small"), ["text"], QuietProgress())


def test_it_answers_what_is_under_way_and_ends(model):
    port = free_port()
    command = [sys.executable, "-m", "plait", "serve", str(model), "--port", str(port)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as server:
        address = f"http://127.0.0.1:{port}"
        wait_until_loaded(address)
        began: queue.Queue[None] = queue.Queue()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(_streamed, address, began) for _ in range(4)]
            for _ in asked:
                began.get(timeout=60)
            server.send_signal(signal.SIGTERM)
            answers = [a.result() for a in asked]
        assert server.wait(timeout=30) == 0
        assert answers[0][-1] == "data: [DONE]"
        (text,) = {"".join(map(_text, a)) for a in answers}
        assert text
        assert server.stderr.read() == f"serving small at {address}\n"


def _streamed(address: str, began: queue.Queue[None]) -> list[str]:
    """Return the lines of an answer; `began` hears of the first of them."""
    body = {"messages": [{"role": "user", "content": "a fox"}], "max_tokens": 400, "seed": 1, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200
        lines = filter(None, answer.iter_lines())
        first = next(lines)
        began.put(None)
        return [first, *lines]


def _text(line: str) -> str:
    data = line.removeprefix("data: ")
    return "" if data == "[DONE]" else json.loads(data)["choices"][0]["delta"].get("content") or ""


def test_why_it_cannot_serve(model, tmp_path, capsys):
    (tmp_path / "key").write_text("two words\n")
    (tmp_path / "empty").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for words, code, sentence in (
            ([str(tmp_path / "none")], 4, "holds no config.yaml"),
            ([str(tmp_path / "empty")], 4, "holds no config.yaml"),
            ([str(model), "--api-key-file", str(tmp_path / "no-key")], 3, "--api-key-file: there is no file"),
            ([str(model), "--api-key-file", str(tmp_path / "key")], 2, "must hold one line of ASCII"),
            ([str(model), "--port", "70000"], 2, "--port: 70000 is not allowed"),
            (
                [str(model), "--port", str(taken.getsockname()[1])],
                5,
                "cannot be used ([Errno 98] Address already",
            ),
        ):
            assert main(["serve", *words]) == code
            said = capsys.readouterr().err
            assert sentence in said and said.count("\n") == 1, said


def test_answers_are_sent_at_once():
    """A small answer does not wait 40 ms for the client's receipt of the head before it (Nagle's algorithm)."""

    async def nodelay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def joined(reader, writer) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen("127.0.0.1", 0)
        async with await asyncio.start_server(joined, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            writer.close()
            return await found

    assert asyncio.run(nodelay()) == 1
