"""A manifest at an address."""

from pathlib import Path

from plait.cli import main

address = (Path.cwd() / "manifest.jsonl").as_uri()
assert main(["prepare", "letters.yaml", "--out", "runs/remote", "--prepare.source", address]) == 0
