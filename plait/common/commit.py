"""The commit that this package is made of: of the checkout that it lies in, or of the one that it was built from."""

import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
BUILT_FROM = "commit.txt"
"""File in a built package that has the commit (setup.py writes it)."""


def commit() -> str:
    """Return the commit, with "+changes" where tracked files differ from it; empty where nobody knows."""
    built = PACKAGE / BUILT_FROM
    if built.is_file():
        return built.read_text(encoding="utf-8").strip()
    return commit_of(PACKAGE.parent)


def commit_of(folder: Path) -> str:
    """Return the commit of a checkout, with "+changes" where tracked files differ from it; empty for anything else."""
    if not (folder / ".git").exists():
        return ""
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("" if clean.returncode == 0 else "+changes") if head.returncode == 0 else ""
