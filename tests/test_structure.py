"""The structure that docs/design.md promises: import order, sizes of files, and a core that needs little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "plait"
ORDER = ["errors", "allocation", "layout", "model_config", "config", "config_file", "launch", "files", "tensor_header",
         "tensor_files", "randomness", "spans", "progress", "batch", "model", "objectives", "codecs", "data", "plan",
         "generate", "evaluate", "train", "compare", "report", "pipeline", "samples", "shipped", "workflow", "inspect",
         "commands", "cli"]  # fmt: skip
"""A file imports only from its own package and from what stands before it."""

NEVER = {"data": {"model", "objectives"}, "model": {"data", "codecs", "train"}, "objectives": {"data", "codecs"}}


def imports(path: Path) -> set[str]:
    """Return the plait packages that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" if node.module == "plait" else node.module for a in node.names]
        found |= {n.split(".")[1] for n in names if n and n.startswith("plait.")}
    return found


FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        assert ORDER.index(name) <= ORDER.index(own), f"{own} imports {name}, which stands after it"
        assert name not in NEVER.get(own, ()), f"{own} must never import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 420


CORE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Refuse())
import plait.train.engine, plait.generate, plait.evaluate.losses, plait.model.pretrained
"""


def test_the_training_core_needs_torch_numpy_safetensors_and_little_else():
    blocked = {"transformers", "diffusers", "tokenizers", "vector_quantize_pytorch", "PIL", "soundfile", "soxr",
               "pyarrow", "torchmetrics", "matplotlib", "jinja2", "resvg_py", "emoji", "pocketsphinx"}  # fmt: skip
    run = subprocess.run([sys.executable, "-c", CORE.format(blocked=blocked)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
