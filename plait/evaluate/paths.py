"""How figures are called: the name of each begins with what was given and made; `plait.report.scores` reads it back."""

from collections.abc import Collection, Sequence


def prefix_of(path: Sequence[str], host: str, bare: Collection[str]) -> str:
    """Return how the names of a path's figures begin; captions of what is in ``bare``, the first images, name nothing.

    A path holds modalities: what was given, what was made, and of a round trip what was made on the way between them.
    """
    given, made = path[0], path[-1]
    if len(path) > 2:
        return f"{made}_via_{path[1]}"
    if made == host:
        return "answer" if given == host else "caption" if given in bare else f"caption_{given}"
    return made if given == host else f"{made}_from_{given}"
