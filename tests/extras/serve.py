"""A server that answers."""

import json
import socket
import subprocess
import sys
import time
import urllib.request

with socket.socket() as listening:
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
address = f"http://127.0.0.1:{port}"
command = [sys.executable, "-m", "plait", "serve", "runs/letters", "--port", str(port), "--device", "cpu"]
with subprocess.Popen(command) as server:
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        question = {"model": "letters", "messages": [{"role": "user", "content": "a fox"}], "max_tokens": 4}
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(question).encode(), headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert json.load(answer)["choices"]
        with urllib.request.urlopen(f"{address}/metrics", timeout=5) as metrics:
            assert b"plait" in metrics.read()
    finally:
        server.terminate()
