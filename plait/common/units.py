"""Numbers as people write them."""


def count(number: float) -> str:
    """Return a large number in three digits: 443M, 7.24B, 1.2T."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
