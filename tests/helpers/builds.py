"""What a release has: an sdist of a commit, and the wheel that is built from it."""

import shutil
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

from helpers import ROOT
from helpers.environments import outside
from helpers.programs import ran

SOURCES = ("plait", "configs", "studies", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
"""What plait is built from."""
GIT = ("git", "-c", "user.name=plait", "-c", "user.email=plait@localhost", "-c", "commit.gpgsign=false")


class Release(NamedTuple):
    """Files of a release."""

    sdist: Path
    wheel: Path
    commit: str


def build(folder: Path) -> Release:
    """Commit this checkout's sources in a new repository, build an sdist of it, and a wheel from the sdist alone."""
    checkout = folder / "checkout"
    checkout.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, checkout / name)
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "a release"]):
        ran(*GIT, *words, cwd=checkout, env=outside())
    commit = ran(*GIT, "rev-parse", "--short=12", "HEAD", cwd=checkout, env=outside()).strip()
    (checkout / "studies" / "__pycache__").mkdir()
    (checkout / "studies" / "__pycache__" / "left.pyc").touch()  # as Python leaves them
    sdist = _built(checkout, "sdist")
    unpacked = folder / "unpacked"
    with tarfile.open(sdist) as tar:
        tar.extractall(unpacked, filter="data")
    (sources,) = unpacked.iterdir()
    return Release(sdist, _built(sources, "wheel"), commit)


def _built(sources: Path, kind: str) -> Path:
    out = sources / "dist"
    out.mkdir()
    ran(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_{kind}('dist')", cwd=sources, env=outside())
    (built,) = out.iterdir()
    return built
