"""What a release installs: built as an index has it, into environments that have nothing but what it names."""

import itertools
import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.builds import Release, build
from helpers.environments import Environment, closure, environment_of, needs_of
from helpers.imports import WINGS, in_wing
from helpers.small_runs import VARIABLES, program, write_letters, write_photos

pytest.importorskip("setuptools", minversion="77")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Release:
    """A release of this checkout."""
    return build(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def core(release, tmp_path_factory) -> Environment:
    """Where plait was installed without extras."""
    return environment_of(release.wheel, tmp_path_factory.mktemp("core") / "env")


@pytest.fixture(scope="module")
def media(release, tmp_path_factory) -> Environment:
    """Where plait[media] was installed."""
    return environment_of(release.wheel, tmp_path_factory.mktemp("media") / "env", "media")


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_wheel_has_modules_configs_studies_and_templates(release):
    names = set(zipfile.ZipFile(release.wheel).namelist())
    package = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "plait").rglob("*.py")}
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "plait").glob("*/templates/*")}
    shipped = [path for folder in ("configs", "studies") for path in (ROOT / folder).rglob("*.yaml")]
    yaml = {f"plait/{path.relative_to(ROOT)}" for path in shipped}
    assert modules and templates and yaml
    assert package == modules | templates | yaml | {"plait/py.typed", "plait/commit.txt"}
    assert any(name.endswith("/LICENSE") for name in names - package)


def test_an_sdist_has_no_compiled_file(release):
    with tarfile.open(release.sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "plait/commit.txt"} <= names
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []


# -- the core ----------------------------------------------------------------------------------------------------------

DISTRIBUTIONS = "import importlib.metadata as m, json; print(json.dumps([d.name for d in m.distributions()]))"
IN_CORE = """
import contextlib, importlib, io, json, pkgutil
import plait
from plait.cli import main

assert "site-packages" in plait.__file__
assert main(["prepare", "letters.yaml"]) == 0
assert main(["train", "letters.yaml"]) == 0
assert main(["generate", "runs/letters", "--text", "a fox", "--output", "text", "--out", "made"]) == 0

failed = {}
for module in pkgutil.walk_packages(plait.__path__, "plait."):
    try:
        module.name == "plait.__main__" or importlib.import_module(module.name)
    except Exception as error:
        failed[module.name] = f"{type(error).__name__}: {error}"

from plait.compare.study import load_study
from plait.config.shipped import config_path, study_path

for name in STUDIES:
    assert "site-packages" in str(study_path(name))
    load_study(study_path(name), find_base=config_path)
assert "site-packages" in str(config_path("quickstart"))

refused = {}
for words in WORDS:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(words.split())
    refused[words] = [code, said.getvalue()]
print(json.dumps({"failed": failed, "refused": refused}))
"""
TRAIN_AGAIN = "train letters.yaml --out runs/other --data.path runs/letters/data"
REFUSED = {
    "prepare photos.yaml": ("images: package 'pillow'", "media"),
    "report runs/letters": ("report: the package 'PIL'", "media"),
    "serve runs/letters": ("serve: package 'uvicorn'", "serve"),
    "completion bash": ("plait completion needs the package shtab", "shtab"),
    f"{TRAIN_AGAIN} --train.trackers [wandb]": ("train.trackers: the package 'wandb'", "wandb"),
}
"""Commands that need more than the core, how their sentence begins, and what it says to install."""


@pytest.fixture(scope="module")
def done_in_core(core, tmp_path_factory) -> tuple[Path, dict]:
    """A folder in which the core prepared, trained, generated and read what is shipped, and what it said it lacks."""
    folder = tmp_path_factory.mktemp("letters")
    write_letters(folder)
    write_photos(folder)
    (folder / "photos").mkdir()
    for number, suffix in itertools.product(range(8), ("png", "txt")):
        (folder / "photos" / f"{number}.{suffix}").write_text(f"fox {number}")
    studies = [path.stem for path in (ROOT / "studies").glob("*.yaml")]
    code = f"WORDS = {list(REFUSED)!r}\nSTUDIES = {studies!r}\n{IN_CORE}"
    return folder, json.loads(core.run("python", "-c", code, cwd=folder, **VARIABLES).splitlines()[-1])


def test_the_core_has_what_it_names_and_nothing_else(release, core, tmp_path):
    assert "No broken requirements" in core.pip("check")
    expected = {"plait", *closure(needs_of(release.wheel))}
    installed = json.loads(core.run("python", "-c", DISTRIBUTIONS, cwd=tmp_path))
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in installed} == expected
    assert {"torch", "numpy", "jinja2"} < expected and not {"transformers", "pillow", "pip", "pytest"} & expected
    with pytest.raises(AssertionError, match="No module named 'transformers'"):
        core.run("python", "-c", "import transformers", cwd=tmp_path)


def test_the_command_of_a_release(release, core, tmp_path):
    said = core.run("plait", "--version", cwd=tmp_path)
    assert re.fullmatch(rf"plait [0-9.]+ \(commit {release.commit}\), Python 3[0-9.]+, torch 2\S+\n", said)
    assert "train.learning_rate = 0.001" in core.run("plait", "settings", cwd=tmp_path)


def test_the_core_prepares_trains_and_generates(done_in_core):
    folder, _ = done_in_core
    steps = [json.loads(line) for line in (folder / "runs/letters/metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in steps) == 4
    (sample,) = (folder / "made/samples.jsonl").read_text().splitlines()
    assert json.loads(sample)["output"][0]["text"]


def test_every_module_but_the_wings_needs_the_core_alone(done_in_core):
    failed = done_in_core[1]["failed"]
    assert {name: said for name, said in failed.items() if not in_wing(name)} == {}
    assert all(any(name == wing or name.startswith(f"{wing}.") for name in failed) for wing in WINGS)
    assert all(re.match(r"(ModuleNotFound|Resource)Error: ", said) for said in failed.values())


def test_what_the_core_lacks_is_said_in_one_sentence(done_in_core):
    for words, (code, said) in done_in_core[1]["refused"].items():
        begins, extra = REFUSED[words]
        *progress, sentence = said.splitlines()
        assert code == 5 and sentence.startswith(f"plait: {begins}"), (words, said)
        assert re.search(rf"pip install '?(plait\[)?{extra}\b", sentence), sentence
        assert not [line for line in progress if line.startswith(("plait: ", "Traceback"))], said


# -- media -------------------------------------------------------------------------------------------------------------


def test_media_prepares_trains_generates_and_reports(release, media, tmp_path):
    assert "No broken requirements" in media.pip("check")
    assert {"transformers", "diffusers", "pillow"} < set(closure(needs_of(release.wheel, "media")))
    write_photos(tmp_path)
    media.run("python", "-c", program("media"), cwd=tmp_path)
    stored = json.loads((tmp_path / "runs/photos/data/report.json").read_text())
    assert not stored.get("broken") and (tmp_path / "runs/photos/report.html").stat().st_size > 10_000
    with pytest.raises(AssertionError, match="No module named 'fastapi'"):
        media.run("python", "-c", "import fastapi", cwd=tmp_path)
