"""What GPUs can do by their makers' data sheets, without sparsity."""

PEAKS: dict[str, dict[str, float]] = {
    "h100": {"float32": 67.0, "bfloat16": 989.0, "float8": 1979.0},
    "h200": {"bfloat16": 989.0},
    "a100": {"bfloat16": 312.0},
    "l40s": {"bfloat16": 362.0},
    "b200": {"bfloat16": 2250.0},
    "4090": {"bfloat16": 165.0},
}
"""TFLOP/s by a word of the GPU's name and by precision (train.precision); an H100 is the SXM."""


def peak_of(name: str, precision: str) -> float:
    """Return the TFLOP/s of a GPU by its name, 0 where they are not known."""
    known = (peaks for word, peaks in PEAKS.items() if word in name.lower())
    return next(known, {}).get(precision, 0.0)
