"""What evaluation takes: seconds for a hundred items of each part, the first time and once real items are known.

    python benchmarks/evaluation.py runs/quickstart            (the quickstart's run: about four minutes)
    python benchmarks/evaluation.py runs/quickstart evaluate.images=100

A copy of the run is evaluated twice, as `plait evaluate` does it: first with nothing kept, then with what no model
changes (features of real items, what judges make of them) from the first time. Both must give the same figures.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from plait.common.progress import Progress
from plait.evaluate.suite import FILE, FOLDER
from plait.run.load import run_config
from plait.run.steps import evaluate_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("settings", nargs="*", help="settings such as evaluate.images=100")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(arguments.run, copy, symlinks=True)
        shutil.rmtree(copy / FOLDER, ignore_errors=True)
        config = run_config(str(copy), arguments.settings)
        measured, figures = [], []
        for _ in range(2):
            (copy / FILE).unlink(missing_ok=True)
            figures.append(evaluate_step(config, Progress()))
            measured.append(json.loads((copy / FILE).read_text())["seconds"])
    if figures[0] != figures[1]:
        sys.exit("the second evaluation gave other figures than the first")
    print("| part | items | seconds for 100 | again |\n|---|---|---|---|")
    first, again = measured
    for part, (seconds, count) in first.items():
        print(f"| {part} | {count} | {100 * seconds / count:.1f} | {100 * again[part][0] / count:.1f} |")
    totals = [sum(seconds for seconds, _ in parts.values()) for parts in measured]
    print(f"| all, in seconds | | {totals[0]:.0f} | {totals[1]:.0f} |")


if __name__ == "__main__":
    main()
