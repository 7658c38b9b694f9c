"""Programs that tests run."""

import subprocess
from pathlib import Path


def ran(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Return what a program writes; its errors are the test's where it fails."""
    run = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, f"{command}\n{run.stdout[-3000:]}\n{run.stderr}"
    return run.stdout
