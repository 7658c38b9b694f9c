"""Each extra, installed by pip into an environment of its own, does what it is for; so does the oldest torch.

`make test-packages` runs them. They download what they install; PIP_INDEX_URL, PIP_FIND_LINKS and the like say where
from. TORCH names another torch than the oldest one.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from helpers import ROOT
from helpers.builds import Release, build
from helpers.environments import outside
from helpers.fitted import speech_codec
from helpers.hub import local_hub
from helpers.imports import PROJECT, distributions_of, extras, plait_imports
from helpers.programs import ran
from helpers.served import small_pipeline
from helpers.small_runs import VARIABLES, program, write_letters, write_photos
from packaging.requirements import Requirement

pytestmark = [pytest.mark.packages, pytest.mark.timeout(3600)]
CONSTRAINTS = ROOT / "constraints.txt"
(PINNED,) = re.findall(r"^torch==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
(OLDEST,) = re.findall(r"^torch>=([\d.]+)", "\n".join(PROJECT["dependencies"]), re.MULTILINE)
TORCH = os.environ.get("TORCH") or OLDEST
"""The oldest torch that plait says it runs on, or another one."""
BESIDE = {"scenes": ["media"]}
"""Extras that an extra is of use with alone."""
IMPORTED = """
import importlib
for name in {modules!r}:
    assert "site-packages" in importlib.import_module(name).__file__
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Release:
    """A release of this checkout."""
    return build(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """A folder for environments, which are large."""
    with TemporaryDirectory(prefix="plait-packages-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def with_torch(room) -> Path:
    """An environment with the pinned torch alone: it comes first, as whoever asks for it later may bring another."""
    environment = new_environment(room / "torch")
    pip(environment, "install", f"torch=={PINNED}")
    return environment


@pytest.fixture
def clone(with_torch, room) -> Iterator[Path]:
    """A copy of it, of links to its files: pip replaces files, and never writes into one."""
    folder = room / "clone"
    yield Path(shutil.copytree(with_torch, folder, symlinks=True, copy_function=os.link))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """A folder with a run of the core's, saved as a model too, and what it was made of."""
    folder = tmp_path_factory.mktemp("letters")
    write_letters(folder)
    write_photos(folder)
    variables = outside(**VARIABLES | {"PYTHONPATH": os.pathsep.join([str(ROOT), "."])})
    for words in (["prepare", "letters.yaml"], ["train", "letters.yaml"], ["export", "runs/letters", "--out", "saved"]):
        ran(sys.executable, "-m", "plait", *words, cwd=folder, env=variables)
    return folder


def new_environment(folder: Path) -> Path:
    """Make an environment with pip."""
    ran(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder


def pip(environment: Path, *words: object) -> str:
    """Run an environment's own pip."""
    command = (environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-input")
    return ran(*command, *words, cwd=environment, env=outside())


def modules_of(extra: str) -> list[str]:
    """Return the modules of plait that import packages of an extra."""
    packages, known = extras()[extra], metadata.packages_distributions()
    return sorted({i.module for i in plait_imports() if distributions_of(i.package, known) & packages})


def test_every_extra_has_a_program():
    assert {path.stem for path in (ROOT / "tests" / "extras").glob("*.py")} == set(extras())


@pytest.mark.parametrize("extra", sorted(extras()))
def test_an_extra(extra, release, clone, letters, tmp_path):
    names = ",".join([extra, *BESIDE.get(extra, [])])
    pip(clone, "install", "-c", CONSTRAINTS, f"{release.wheel}[{names}]")
    assert f"\nVersion: {PINNED}" in pip(clone, "show", "torch")
    pip(clone, "check")
    folder = Path(shutil.copytree(letters, tmp_path / "letters"))
    if extra == "hf":
        pipeline = small_pipeline(tmp_path, chat=False, speech=speech_codec(tmp_path))
        pipeline.save_pretrained(folder / "small")
    python = clone / "bin" / "python"
    with local_hub() as hub:
        hub.add("maria/letters", letters / "saved")
        own = {name: value for name, value in hub.environment(tmp_path / "hub").items() if name.startswith("HF_")}
        variables = outside(**VARIABLES, CHECKOUT=str(ROOT), NO_MKDOCS_2_WARNING="1") | own
        variables.pop("HF_HUB_OFFLINE", None)  # the Hub is this one
        ran(python, "-c", IMPORTED.format(modules=modules_of(extra)), cwd=folder, env=variables)
        ran(python, "-c", program(extra), cwd=folder, env=variables)


def test_the_oldest_torch(release, room, letters, tmp_path):
    """The core trains and generates with it."""
    environment = new_environment(room / "oldest")
    pip(environment, "install", "--upgrade", "pip>=24")  # which asks what a package needs without fetching it
    asked = pip(environment, "install", "--quiet", "--dry-run", "--no-deps", "--report", "-", f"torch=={TORCH}")
    needs = map(Requirement, json.loads(asked)["install"][0]["metadata"].get("requires_dist", []))
    cuda = [n.name for n in needs if n.name.startswith(("nvidia", "cuda")) and (not n.marker or n.marker.evaluate())]
    if cuda and not torch.version.cuda:
        pytest.skip(
            f"torch {TORCH} was not installed: its build for this machine is for CUDA and takes gigabytes; name an "
            "index of CPU builds in PIP_INDEX_URL, or a folder of them in PIP_FIND_LINKS"
        )
    pip(environment, "install", f"torch=={TORCH}")
    pip(environment, "install", release.wheel)
    assert f"\nVersion: {TORCH}" in pip(environment, "show", "torch")
    pip(environment, "check")
    folder = Path(shutil.copytree(letters, tmp_path / "letters"))
    for words in (["train", "letters.yaml", "--out", "runs/old", "--data.path", "runs/letters/data"],
                  ["generate", "runs/letters", "--text", "a fox", "--output", "text"]):  # fmt: skip
        ran(environment / "bin" / "plait", *words, cwd=folder, env=outside(**VARIABLES))
