"""The shared id space: where the ids and delimiters of each modality lie."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class IdLayout:
    """Where each modality's ids and delimiters lie in the shared id space.

    Blocks follow the order of the modalities, so that appending one shifts nothing::

        | host ids | <bos> <eos> | image ids | <image> </image> | speech ids | <speech> </speech> | ...

    Where the host's own ids open and end documents, as those of a language model do, <bos> and <eos> are not added.
    """

    names: tuple[str, ...]
    sizes: dict[str, int]
    """Number of ids of each modality."""
    offsets: dict[str, int]
    opening: dict[str, int]
    closing: dict[str, int]
    added: tuple[int, ...]
    """Those of <bos> and <eos> that stand behind the host's own ids."""
    bos: int | None
    """Id that opens a document; None: documents open without."""
    eos: int
    stops: frozenset[int]
    """Ids that end the host's text: `eos`, and those of the host that do the same."""
    size: int

    @property
    def host(self) -> str:
        """The modality that delimiters belong to, itself written without delimiters."""
        return self.names[0]

    @classmethod
    def of(
        cls, vocab_sizes: dict[str, int], bos: int | str = "added", eos: int | str = "added", stops: Iterable[int] = ()
    ) -> "IdLayout":
        """Lay out the ids of modalities, given as name to number of ids in their order.

        ``bos`` is one of the host's ids, "added" or "none"; ``eos`` one of the host's ids or "added".
        """
        offsets, opening, closing = {}, {}, {}
        added: tuple[int, ...] = ()
        at = 0
        for i, (name, size) in enumerate(vocab_sizes.items()):
            offsets[name] = at
            at += size
            if i == 0:
                added = tuple(at + k for k in range((bos, eos).count("added")))
                at += len(added)
            else:
                opening[name], closing[name] = at, at + 1
                at += 2
        first = added[0] if bos == "added" else None if bos == "none" else int(bos)
        last = added[-1] if eos == "added" else int(eos)
        stops = frozenset([last, *stops])
        return cls(tuple(vocab_sizes), dict(vocab_sizes), offsets, opening, closing, added, first, last, stops, at)

    def ids(self, modality: str) -> range:
        """Return the global ids of a modality's codec."""
        first = self.offsets[modality]
        return range(first, first + self.sizes[modality])

    def __str__(self) -> str:
        return ", ".join(f"{len(self.ids(name))} of {name}" for name in self.names)

    def name_of(self, token: int) -> str:
        """Return a readable name of a global id, such as ``image:17`` or ``<image>``."""
        special: dict[int | None, str] = {self.bos: "<bos>", self.eos: "<eos>"}
        for sign, delimiters in (("", self.opening), ("/", self.closing)):
            special |= {i: f"<{sign}{name}>" for name, i in delimiters.items()}
        if token in special:
            return special[token]
        for name in self.names:
            if token in self.ids(name):
                return f"{name}:{token - self.offsets[name]}"
        raise ValueError(f"id {token} is outside the id space of {self.size}")
