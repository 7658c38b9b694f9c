"""The five ratios of docs/performance.md, and its figure."""

import json

import figures
import speed_table


def row(name: str, value: float) -> dict:
    return {"name": name, "value": value, "commit": "0123456789", "versions": {"torch": "2"}}


def test_the_figure_shows_the_results(tmp_path):
    results = json.loads(figures.SPEED.read_text())
    assert speed_table.digest(results) in speed_table.FIGURE.read_text(), "run: make figures"
    speed_table.figure(results, tmp_path / "steps.svg")
    drawn = (tmp_path / "steps.svg").read_text()
    assert "d = 4,096, 1,024 tokens, 2 towers 50:50" in drawn and speed_table.digest(results) in drawn
    changed = {"rows": [row | {"value": 9 * row["value"]} for row in results["rows"]]}
    assert speed_table.digest(changed) not in drawn


def test_ratios_leave_out_what_was_not_taken():
    step, decoding = "step_ratio/mot/d8-t8-1towers-1/float32/eager", "decode/speedup/d8-l1/rows32"
    copied = [row("decode/share_of_copy/d8-l1/rows1", 0.25), row("decode/share_of_copy/d8-l1/rows8", 0.125)]
    table = speed_table.ratios({"rows": [row(step, 1.5), row(decoding, 7), *copied]})
    assert "| 1.50 (1.50 to 1.50 over 1 shapes" in table and "| 7.00; 0.12 to 0.25 |" in table and "0123456" in table
    assert "recipe" not in table and "BAGEL" not in table
