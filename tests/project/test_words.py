"""Words that nobody should have to read twice: banned phrases stay out of what people see."""

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

BANNED = {
    r"\bgoes on (?:from|where)\b|\bgo on where\b|same command goes on": "resumes; rerun the same command to resume",
    r"\banew\b": "again, from scratch",
    r"\bshall\b": "is to, must",
    r"\bprepared already\b": "already prepared",
    r"\bwhole checkpoints?\b": "complete checkpoint",
    r"\b(?:is|are|was) damaged\b": "is corrupt",
    r"\b[Pp]ictures?\b": "image",
    r"\bdata that come out again\b": "reproducible data",
    r"FLOPs a (?:step|token)\b": "FLOPs per step",
    r"\blearnt\b": "learned",
    r"\bis no levels?\b|\bare no levels\b": "is ignored when matching",
    r"\bamong 400 names\b": "400-way forced choice",
    r"\d %(?!\})": "2.7%, not 2.7 %",
}
"""A pattern of each phrase, and what is said instead."""

LOGS = ("experiments.md", "results.md")
"""Pages whose words stay as they were written, or that are written from results."""

PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", ROOT / "CONTRIBUTING.md",
         *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name not in LOGS)]  # fmt: skip
CODE = sorted((ROOT / "plait").rglob("*.py"))
TEMPLATES = sorted((ROOT / "plait").rglob("templates/*.html"))

KEPT = {
    "plait/prepare/foreign.py": {"picture"},
    "plait/evaluate/reference_classifier.py": {"picture"},
    "plait/config/file.py": {"pictures"},
}
"""Names of columns that users have, of random draws, which would be others, and of settings of earlier files."""


def texts(path: Path) -> list[tuple[int, str]]:
    """Return the strings of a module with their lines, but for docstrings of modules, classes and functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


def banned(text: str, kept: set[str] = frozenset()) -> list[str]:
    """Return the banned phrases of a text, each with what is said instead."""
    found = [(match[0], instead) for pattern, instead in BANNED.items() for match in re.finditer(pattern, text)]
    return [f"{phrase!r}: {instead}" for phrase, instead in found if phrase not in kept]


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_strings(path):
    kept = KEPT.get(path.relative_to(ROOT).as_posix(), set())
    assert [(line, found) for line, text in texts(path) if (found := banned(text, kept))] == []


@pytest.mark.parametrize("path", [*PAGES, *TEMPLATES], ids=lambda p: p.name)
def test_pages(path):
    text = re.sub(r"```.*?```|<!-- (?:figures|results): .*?<!-- end -->", lambda m: "\n" * m[0].count("\n"),
                  path.read_text(encoding="utf-8"), flags=re.DOTALL)  # fmt: skip
    assert [(n, found) for n, line in enumerate(text.splitlines(), 1) if (found := banned(line))] == []


def test_a_banned_phrase_is_found():
    assert banned("the same command goes on from there") and banned("2.7 % of pictures") and banned("it is damaged")
    assert not banned("rerun the same command to resume; 2.7% of images")
