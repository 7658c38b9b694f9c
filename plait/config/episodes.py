"""How episodes of robots become documents: the section `prepare.episodes`."""

from dataclasses import dataclass, field
from typing import ClassVar

from plait.config.bounds import Checked, bounded


@dataclass
class EpisodesConfig(Checked):
    """Episodes of robots as documents (lerobot:FOLDER, metaworld)."""

    SECTION: ClassVar[str] = "prepare.episodes"

    chunk: int = bounded(8, at_least=1)
    """Steps of actions in one document, which a policy predicts together. After an episode's last step its last action
    is repeated."""
    stride: int = bounded(4, at_least=1)
    """Steps from the start of one document to the start of the next one in an episode."""
    history: int = bounded(0, at_least=0)
    """Earlier steps whose images and states stand before the current ones; 0: none. Before an episode's first step its
    first image and state are repeated."""
    next_share: float = bounded(0.0, at_least=0, at_most=1)
    """Share of the documents that are for a world model instead: image, actions and the image `chunk` steps later,
    without text and state."""
    tasks: list[str] = field(default_factory=lambda: ["quickstart"])
    """Of Meta-World: the tasks that are demonstrated and tried, by name (drawer-open-v3), by how hard they are (easy,
    medium, hard, very hard), the ten of the quickstart (quickstart), or all."""
    max_steps: int = bounded(200, at_least=20)
    """Of Meta-World: steps that an expert has to succeed in, and a policy when it is tried. The published protocol has
    500."""
