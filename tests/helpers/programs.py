"""Programs that tests run."""

import subprocess
from pathlib import Path


def ran(*command: object, cwd: Path) -> str:
    """Return what a program writes; its errors are the test's where it fails."""
    run = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr
    return run.stdout
