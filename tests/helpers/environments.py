"""Environments that hold a plait that was built, what it says it needs, and nothing else."""

import os
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.programs import ran

OWN = ("PYTHON", "PLAIT_", "GIT_")
"""How variables begin by which a program would find this checkout."""


def outside(**more: str) -> dict[str, str]:
    """Return the variables of a program that knows nothing of this checkout, with one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def needs_of(wheel: Path, *extras: str) -> list[Requirement]:
    """Return what a wheel says that it needs, with extras."""
    (folder,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    needs = map(Requirement, metadata.PathDistribution(folder).requires or ())
    return [need for need in needs if _applies(need, extras)]


def closure(needs: Iterable[Requirement]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that are needed, and those that these need, by name.

    Raises PackageNotFoundError for one that is not installed.
    """
    distributions: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = list(needs)
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        asked = (name, frozenset(need.extras))
        if asked in seen:
            continue
        seen.add(asked)
        distributions[name] = metadata.distribution(need.name)
        inner = map(Requirement, distributions[name].requires or ())
        queue += [i for i in inner if _applies(i, need.extras)]
    return distributions


def link(distributions: Iterable[metadata.Distribution], folder: Path) -> None:
    """Link what distributions have installed into a folder of modules."""
    for distribution in distributions:
        files = [f for f in distribution.files or () if ".." not in f.parts and not f.is_absolute()]
        assert files, f"{distribution.metadata['Name']} has no list of its files"
        root = Path(str(distribution.locate_file("")))
        for top in {file.parts[0] for file in files} - {"__pycache__"}:
            source = root / top
            if not source.is_dir() or (source / "__init__.py").exists() or top.endswith(".dist-info"):
                (folder / top).symlink_to(source)
                continue
            for file in (f for f in files if f.parts[0] == top):  # a folder that several may share
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).symlink_to(root / file)


class Environment:
    """A virtual environment without pip."""

    def __init__(self, folder: Path):
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        at = {"base": str(folder), "platbase": str(folder)}
        self.modules = Path(sysconfig.get_path("purelib", "venv", at))

    def pip(self, *words: object) -> str:
        """Run this Python's pip upon the environment, without the network."""
        command = (sys.executable, "-m", "pip", "--python", self.bin / "python", "--disable-pip-version-check")
        return ran(*command, *words, cwd=self.bin, env=outside(PIP_NO_INDEX="1"))

    def run(self, program: str, *words: object, cwd: Path, **variables: str) -> str:
        """Return what a program of the environment writes."""
        return ran(self.bin / program, *words, cwd=cwd, env=outside(**variables))


def environment_of(wheel: Path, folder: Path, *extras: str) -> Environment:
    """Install a wheel beside links to what it says that it needs, with extras, and to nothing else."""
    environment = Environment(folder)
    link(closure(needs_of(wheel, *extras)).values(), environment.modules)
    environment.pip("install", "--quiet", "--no-deps", "--no-compile", wheel)
    return environment
