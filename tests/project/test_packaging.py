"""An installed wheel finds what a checkout has beside the package."""

import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT

pytest.importorskip("setuptools", minversion="77")
NEEDED = ("plait", "configs", "studies", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
USE = """
from plait.compare.study import load_study
from plait.config.shipped import STUDIES, config_path, study_path

for name in {names!r}:
    path = study_path(name)
    assert {folder!r} in str(path), path
    load_study(path, find_base=config_path)
assert {folder!r} in str(config_path("quickstart"))
"""


def test_a_wheel_has_configs_studies_and_templates(tmp_path):
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = "import setuptools.build_meta as b; b.build_wheel('wheels')"
    (tmp_path / "wheels").mkdir()
    run = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = (tmp_path / "wheels").glob("plait-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "studies"):
        here = {f"plait/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.yaml")}
        assert here and here <= names
    here = {str(p.relative_to(ROOT)) for p in (ROOT / "plait").glob("*/templates/*")}
    assert here and here <= names

    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    studies = [p.stem for p in (ROOT / "studies").glob("*.yaml")]
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n" + USE.format(names=studies, folder=str(installed))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
