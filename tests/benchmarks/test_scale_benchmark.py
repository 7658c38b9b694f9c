"""benchmarks/scale.py writes every row that it promises, with figures that can be."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT

ROWS = {
    "checkpoint": {"stall", "work", "stands_still", "whole_after", "resume", "size"},
    "weak": {"2ranks", "2apart"},
    "loader": {"tokens_per_second", "times_the_need"},
    "prepare": {"documents_per_second"},
}


@pytest.mark.slow
@pytest.mark.parametrize("part", ROWS)
def test_rows_of_a_part(tmp_path, part):
    command = [sys.executable, str(ROOT / "benchmarks/scale.py"), "--grid", "tiny", "--device", "cpu", "--turns", "2"]
    command += ["--part", part, "--out", str(tmp_path), "--scratch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = tmp_path.glob("cpu-*.json")
    rows = json.loads(results.read_text())["rows"]
    assert {row["name"].split("/")[1] for row in rows} == ROWS[part]
    assert all(row["value"] > 0 for row in rows if row["name"].split("/")[1] != "stall")
