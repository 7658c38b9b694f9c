"""What the modules of plait import, read from their sources."""

import ast
import functools
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

WINGS = {
    "plait.hf": "media",
    "plait.serve": "serve",
    "plait.driving.roads": "driving",
    "plait.evaluate.harness": "harness",
    "plait.model.kernels": "triton",
}
"""Modules that cannot be imported with the core's dependencies alone, each with the extra (or package) that they need.
They are imported by others of their own, and inside of functions."""

COMES_WITH = {"markupsafe": "jinja2", "pydantic": "fastapi", "starlette": "fastapi", "tqdm": "lm-eval"}
"""Packages that are part of how another one is used, which requires them."""

BY_HAND = {"gguf", "onnxruntime", "speechmos", "torch-fidelity", "torchao", "trackio", "triton"}
"""Packages that no extra brings: where one is missing, a sentence says to install it. torch brings triton for GPUs."""


class Import(NamedTuple):
    """An import of a module of plait's."""

    module: str
    name: str
    """What is imported, in full."""
    is_first: bool
    """Whether the module needs it to be imported itself: it stands in no function, nor where it may fail."""

    @property
    def package(self) -> str:
        """The package that is imported."""
        return self.name.partition(".")[0]


def in_wing(module: str) -> bool:
    """Whether a module is one that needs more than the core."""
    return any(module == wing or module.startswith(f"{wing}.") for wing in WINGS)


def module_name(path: Path) -> str:
    """Return the name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def plait_imports() -> list[Import]:
    """Return all imports of all modules of plait but those for types alone."""
    files = sorted((ROOT / "plait").rglob("*.py"))
    return [found for path in files for found in imports_of(path.read_text(encoding="utf-8"), module_name(path))]


def imports_of(source: str, module: str) -> list[Import]:
    """Return the imports of a module's source."""
    return list(_imports(ast.parse(source).body, module, True))


def _imports(nodes: Sequence[ast.AST], module: str, is_first: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, is_first) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{module}: a relative import"
            yield Import(module, node.module, is_first)
            if node.module.startswith("plait"):  # which may be modules too
                yield from (Import(module, f"{node.module}.{alias.name}", is_first) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.orelse, module, is_first)
        elif isinstance(node, ast.Try):
            yield from _imports(node.body, module, is_first and not _may_fail(node))
            yield from _imports([*node.handlers, *node.orelse, *node.finalbody], module, is_first)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(list(ast.iter_child_nodes(node)), module, is_first and not inside)


def _may_fail(node: ast.Try) -> bool:
    """Whether a missing package is passed over."""
    caught = [h for h in node.handlers if h.type is not None and "ImportError" in ast.unparse(h.type)]
    return any(not any(isinstance(n, ast.Raise) for n in ast.walk(handler)) for handler in caught)


def is_foreign(name: str) -> bool:
    """Whether a package is neither Python's nor plait."""
    own = name == "plait" or name.startswith("_sysconfigdata")  # whose name has the platform in it
    return not own and name not in sys.stdlib_module_names


def distributions_of(package: str, known: dict[str, list[str]]) -> set[str]:
    """Return the distributions that have a package, as requirements name them; its own name where it is not installed.

    ``known`` is what `importlib.metadata.packages_distributions` returns.
    """
    return {canonicalize_name(name) for name in known.get(package, [package])}


def names(requirements: Sequence[str]) -> set[str]:
    """Return the names of requirements."""
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def extras() -> dict[str, set[str]]:
    """Return the names of what each extra brings, but for what plait is developed with; another extra's are in it."""
    listed = {extra: names(needs) for extra, needs in PROJECT["optional-dependencies"].items() if extra != "dev"}
    for extra, needs in PROJECT["optional-dependencies"].items():
        own = [Requirement(text) for text in needs]
        for inner in (i for need in own if need.name == PROJECT["name"] for i in need.extras):
            listed[extra] = listed[extra] - {PROJECT["name"]} | listed[inner]
    return listed


def requires(distribution: str) -> set[str]:
    """Return the names of what an installed distribution requires without extras of its own."""
    needs = [Requirement(text) for text in metadata.requires(distribution) or ()]
    return {canonicalize_name(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})}
