"""An installed wheel finds what a checkout has beside the package."""

import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.fitted import speech_codec
from helpers.programs import ran
from helpers.served import small_pipeline

from plait.common.commit import BUILT_FROM

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


def build_wheel(folder: Path, commit: str = "") -> Path:
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    if commit:  # as an sdist has it
        (folder / "plait" / BUILT_FROM).write_text(f"{commit}\n")
    (folder / "wheels").mkdir()
    ran(sys.executable, "-c", "import setuptools.build_meta as b; b.build_wheel('wheels')", cwd=folder)
    (wheel,) = (folder / "wheels").glob("plait-*.whl")
    return wheel


def test_a_wheel_has_configs_studies_and_templates(tmp_path):
    wheel = build_wheel(tmp_path, commit="0123456789ab")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("configs", "studies"):
        here = {f"plait/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.yaml")}
        assert here and here <= names
    here = {str(p.relative_to(ROOT)) for p in (ROOT / "plait").glob("*/templates/*")}
    assert here and here | {"plait/py.typed"} <= names

    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    studies = [p.stem for p in (ROOT / "studies").glob("*.yaml")]
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n" + USE.format(names=studies, folder=str(installed))
    ran(sys.executable, "-c", code, cwd=tmp_path)
    said = ran(sys.executable, "-m", "plait", "--version", cwd=installed)
    assert re.fullmatch(r"plait [0-9.]+ \(commit 0123456789ab\), Python 3[0-9.]+, torch 2\S+\n", said)


IN_TRANSFORMERS = """
import sys, plait
from transformers import AutoModelForMultimodalLM, AutoProcessor, Trainer, TrainingArguments, pipeline

assert "site-packages" in plait.__file__, plait.__file__
pipe = pipeline("any-to-any", model="small", trust_remote_code=True)
image = pipe("a fox", generation_mode="image")[0]["generated_image"]
sound = pipe("a fox", generation_mode="audio")[0]["generated_audio"]
print(image.size, len(sound), pipe("a ", images=image, audio=sound, max_new_tokens=4)[0]["generated_text"][:1])
model = AutoModelForMultimodalLM.from_pretrained("small", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("small", trust_remote_code=True)
rows = [{"parts": [{"text": "a fox", "loss": False}, {"image": image}]}] * 2
options = TrainingArguments("tuned", max_steps=20, remove_unused_columns=False, report_to=[], use_cpu=True)
Trainer(model, options, train_dataset=rows, data_collator=processor.collate).train()
assert "matplotlib" not in sys.modules
"""


@pytest.mark.slow
def test_transformers_in_a_new_environment(tmp_path):
    """``pip install plait[hf]`` of the wheel is all that a saved model needs to read and make media."""
    speech = speech_codec(tmp_path)
    small_pipeline(tmp_path, chat=False, speech=speech).save_pretrained(tmp_path / "small")
    wheel = build_wheel(tmp_path)
    python = tmp_path / "new" / "bin" / "python"
    ran(sys.executable, "-m", "venv", tmp_path / "new", cwd=tmp_path)
    constraints = ROOT / "constraints.txt"
    (torch,) = [line for line in constraints.read_text().splitlines() if line.startswith("torch==")]
    ran(python, "-m", "pip", "install", "-q", torch, cwd=tmp_path)
    ran(python, "-m", "pip", "install", "-q", "-c", constraints, f"{wheel}[hf]", cwd=tmp_path)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "small", tmp_path / "elsewhere" / "small")
    said = ran(python, "-c", IN_TRANSFORMERS, cwd=tmp_path / "elsewhere")
    assert said.splitlines()[0].startswith("(16, 16) ") and said.splitlines()[0].endswith(" a")
