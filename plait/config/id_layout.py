"""The shared id space: where the ids and delimiters of each modality lie."""

from dataclasses import dataclass


@dataclass(frozen=True)
class IdLayout:
    """Where each modality's ids and delimiters lie in the shared id space.

    Blocks follow the order of the modalities, so that appending one shifts nothing::

        | host ids | <bos> <eos> | image ids | <image> </image> | speech ids | <speech> </speech> | ...
    """

    names: tuple[str, ...]
    offsets: dict[str, int]
    opening: dict[str, int]
    closing: dict[str, int]
    bos: int
    eos: int
    size: int

    @property
    def host(self) -> str:
        """The modality that delimiters belong to, itself written without delimiters."""
        return self.names[0]

    @classmethod
    def of(cls, vocab_sizes: dict[str, int]) -> "IdLayout":
        """Lay out the ids of modalities, given as name to number of ids in their order."""
        offsets, opening, closing = {}, {}, {}
        at = bos = 0
        for i, (name, size) in enumerate(vocab_sizes.items()):
            offsets[name] = at
            at += size
            if i == 0:
                bos = at
            else:
                opening[name], closing[name] = at, at + 1
            at += 2
        return cls(tuple(vocab_sizes), offsets, opening, closing, bos, bos + 1, at)

    def ids(self, modality: str) -> range:
        """Return the global ids of a modality's codec."""
        return range(self.offsets[modality], self.opening.get(modality, self.bos))

    def __str__(self) -> str:
        return ", ".join(f"{len(self.ids(name))} of {name}" for name in self.names)

    def name_of(self, token: int) -> str:
        """Return a readable name of a global id, such as ``image:17`` or ``<image>``."""
        special = {self.bos: "<bos>", self.eos: "<eos>"}
        special |= {v: f"<{k}>" for k, v in self.opening.items()} | {v: f"</{k}>" for k, v in self.closing.items()}
        if token in special:
            return special[token]
        for name in self.names:
            if token in self.ids(name):
                return f"{name}:{token - self.offsets[name]}"
        raise ValueError(f"id {token} is outside the id space of {self.size}")
