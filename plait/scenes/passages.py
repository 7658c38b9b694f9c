"""Passages of text from Python's standard library: code and documentation that every installation has.

Captions are short and soon learned. Where text is to be as hard to learn as images, and as much of the data, some of
the scenes' documents are passages (`prepare.passages`), each of which comes at most once. They are those of the Python
that runs, so another version has others.
"""

import functools
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plait.common.errors import ConfigError
from plait.common.randomness import generator
from plait.prepare.raw import RawDocument

LENGTH = 600
"""Characters of a passage, about; it ends with a line."""
HELD_OUT = 0.05
"""Share of the files whose passages are the split `passages`."""
_LEFT_OUT = {"test", "tests", "idle_test", "encodings", "site-packages", "__pycache__", "turtledemo", "lib2to3"}
_SHORTEST = 200


@dataclass(frozen=True)
class Passage:
    """A stretch of a file."""

    file: str
    text: str

    def document(self, parts: Sequence[str]) -> RawDocument:
        """Return the passage as a document of one part, if text is among the parts that are made."""
        return RawDocument([("text", self.text)] if "text" in parts else [], {"passage": self.file})


def first_passages(seed: int, count: int, *, held_out: bool) -> list[Passage]:
    """Return the first ``count`` passages for training, or of those held out, in the order in which they come.

    Raises ConfigError where there are fewer.
    """
    others = {file for file in _by_file() if generator(seed, f"passages: {file}").random() < HELD_OUT}
    passages = [p for file, own in _by_file().items() if (file in others) == held_out for p in own]
    if count > len(passages):
        raise ConfigError(
            f"prepare.passages: {count:,} passages are asked for, Python's library has {len(passages):,}"
            f"{' that are held out' if held_out else ''}; take a smaller share or fewer documents"
        )
    order = generator(seed, "passages: order").permutation(len(passages))
    return [passages[i] for i in order[:count]]


@functools.cache
def _by_file() -> dict[str, list[Passage]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    return {file.as_posix(): list(_cut(root, file)) for file in files if not _LEFT_OUT & set(file.parts)}


def _cut(root: Path, file: Path) -> Iterator[Passage]:
    """Cut a file into passages of whole lines."""
    try:
        text = (root / file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    lines: list[str] = []
    for line in text.splitlines():
        lines.append(line.rstrip()[:LENGTH])
        if sum(map(len, lines)) >= LENGTH:
            yield Passage(file.as_posix(), "\n".join(lines).strip("\n"))
            lines = []
    if sum(map(len, lines)) >= _SHORTEST:
        yield Passage(file.as_posix(), "\n".join(lines).strip("\n"))
