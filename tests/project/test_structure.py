"""The structure that docs/design.md promises: import order, sizes of files, and a core that needs little."""

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from helpers import ROOT

import plait
from plait.config.run import WORLDS
from plait.prepare.raw_sources import MADE

PACKAGE = ROOT / "plait"
ORDER = ["common", "config", "batch", "model", "objectives", "codecs", "upcycle", "data", "prepare", "scenes", "plan",
         "generate", "hf", "evaluate", "worlds", "robots", "driving", "train", "web", "compare", "serve", "report",
         "run", "cli"]  # fmt: skip
"""A file imports only from its own package and from what stands before it."""

NEVER = {"data": {"model", "objectives"}, "model": {"data", "codecs", "train"}, "objectives": {"data", "codecs"}}


def modules(path: Path) -> set[str]:
    """Return the modules of plait that a file imports anywhere, with the names that it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)] if node.module else []
        found |= {n.removeprefix("plait.") for n in names if n.startswith("plait.")}
    return found


def imports(path: Path) -> set[str]:
    """Return the plait packages that a file imports anywhere."""
    return {name.split(".")[0] for name in modules(path)}


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem not in ("__init__", "__main__"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        assert ORDER.index(name) <= ORDER.index(own), f"{own} imports {name}, which stands after it"
        assert name not in NEVER.get(own, ()), f"{own} must never import {name}"


def test_the_model_knows_no_run():
    """Neither its settings nor how ranks share the work: it calls what `plait.model.ranks` exchanges."""
    for path in (PACKAGE / "model").glob("*.py"):
        assert not {"config.run", "config.rank_layout", "config.generation"} & modules(path), path


def test_the_design_page_lists_every_file():
    """The tree of docs/design.md is the one on disk, room by room in the order of imports."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = text.split("```\nplait/\n")[1].split("\n  cli.py")[0]
    rooms = re.findall(r"^  (\w+)/(.*\n(?: {4}.*(?:\n|$))*)", tree, re.MULTILINE)
    assert [room for room, _ in rooms] == ORDER[:-1]
    for room, listed in rooms:
        files = {path.name for path in (PACKAGE / room).glob("*.py")} - {"__init__.py"}
        assert sorted(re.findall(r"\w+\.py", listed)) == sorted(files), room


def test_one_place_knows_the_kinds_of_sources():
    """Judges and truths come with the source of the data: it is opened by its name, and nothing imports a scene."""
    assert {*MADE} == {*WORLDS}
    wings = {module.split(".")[1] for module in MADE.values()}
    for path in FILES:
        assert not wings & imports(path) - {path.parent.name}, path


def test_no_test_takes_from_another():
    """What tests share stands in tests/helpers."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("test_", "conftest")) for name in names), path


def test_one_place_says_which_role_a_part_has():
    """Roles are never spelt out where parts are made: `plait.batch.documents.role_of` decides."""
    for path in FILES:
        roles = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.keyword) and n.arg == "role"]
        spelt = [n for n in roles if isinstance(n.value, ast.Constant | ast.IfExp)]
        assert not spelt, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 420


CORE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Refuse())
import plait.train.trainer, plait.generate, plait.evaluate.losses, plait.model.pretrained
"""


def test_the_training_core_needs_torch_numpy_safetensors_and_little_else():
    blocked = {"transformers", "diffusers", "tokenizers", "vector_quantize_pytorch", "PIL", "soundfile", "soxr",
               "pyarrow", "matplotlib", "jinja2", "resvg_py", "emoji", "pocketsphinx"}  # fmt: skip
    run = subprocess.run([sys.executable, "-c", CORE.format(blocked=blocked)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


KNOWS_NAMES = {"named_parameters", "named_modules", "named_buffers", "state_dict", "weights", "parts"}
"""A file of these packages that says one of them has names of weights at hand."""

TAKES_APART = {"startswith", "endswith", "partition", "rpartition", "rsplit", "removeprefix", "removesuffix"}

READS_FILES = {
    ("train/checkpoint.py", "weights_key"): "names of files",
    ("train/checkpoint.py", "_step"): "names of folders",
    ("train/checkpoint.py", "restore"): "{kind}/{name} in a file",
    ("train/checkpoint.py", "_restore_random"): "{rank}/{name} in a file",
    ("train/export.py", "_checkpoint"): "names of folders",
    ("model/pretrained.py", "_bytes_of"): "a size",
    ("model/adapters.py", "_of_module"): "peft's patterns",
    ("train/diagnostics.py", "progress_text"): "names of a log's columns",
    ("train/parallel.py", "local_device"): "names of devices",
    ("plan/show.py", "_operations"): "a unit",
    ("plan/show.py", "layouts_table"): "heads of columns",
    ("plan/trace.py", "no_tensor_is_kept"): "names of Python modules",
}
"""Functions that may take text apart in such files, and what it is."""


def takes_names_apart(path: Path) -> set[str]:
    """Return the functions that take strings apart, or look for a string within one, in a file that knows names."""
    tree = ast.parse(path.read_text())
    if not any(isinstance(n, ast.Attribute) and n.attr in KNOWS_NAMES for n in ast.walk(tree)):
        return set()
    found = set()
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        for node in ast.walk(function):
            if _takes_apart(node) or _looks_within(node):
                found.add(function.name)
    return found


def _takes_apart(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    text = bool(node.args) and isinstance(node.args[0], ast.JoinedStr | ast.Constant)
    return (node.func.attr in TAKES_APART or ast.unparse(node.func.value) == "re"
            or (node.func.attr in ("split", "replace") and text))  # fmt: skip


def _looks_within(node: ast.AST) -> bool:
    return (isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn)
            and isinstance(node.left, ast.JoinedStr | ast.Constant)
            and ast.unparse(node.comparators[0]).rpartition(".")[2] in ("name", "n", "fqn", "key"))  # fmt: skip


def test_nothing_is_guessed_from_the_name_of_a_weight():
    """Modules say what their weights are (plait.model.traits); names are taken apart where files are read alone."""
    found = {(str(path.relative_to(PACKAGE)), name) for package in ("model", "train", "plan", "compare", "objectives",
             "generate") for path in (PACKAGE / package).rglob("*.py") for name in takes_names_apart(path)}  # fmt: skip
    assert sorted(found - set(READS_FILES)) == [] and sorted(set(READS_FILES) - found) == []


@pytest.mark.parametrize("guess", ['"norm" in name', 'name.endswith("bias")', 'name.split(".")[2] == "o"',
                                   'f".{tower}." in name', 'name.replace(".text.", ".image.")'])  # fmt: skip
def test_a_guess_is_found(guess, tmp_path):
    path = tmp_path / "guess.py"
    path.write_text(f"def f(model, tower):\n    return [{guess} for name, p in model.named_parameters()]\n")
    assert takes_names_apart(path) == {"f"}


def test_mypy_is_strict_on_all_that_plait_exports():
    """The types of what `plait` exports can be trusted: no module that defines or exports it is checked less."""
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    relaxed, strict, unchecked = mypy["overrides"]
    assert mypy["strict"] and relaxed["module"] == "plait.*"
    assert all(strict[flag] for flag in relaxed if flag != "module")
    exported = {"plait", *plait._PUBLIC.values(), *(getattr(plait, name).__module__ for name in plait._PUBLIC)}
    for module in exported:
        assert any(fnmatch(module, name.replace(".*", "*")) for name in strict["module"]), f"{module} is not strict"
        assert module not in unchecked["module"]
