"""Comparing stored values with fresh ones: numbers within a tolerance, everything else exactly.

Processors, thread counts and BLAS builds add in different orders, so fitted numbers differ in their last digits.
"""

from typing import Any

import pytest

RELATIVE, ABSOLUTE = 1e-6, 1e-9


def differences(found: Any, stored: Any, where: str = "") -> list[str]:
    """Return one line for each place where two JSON values differ; whole numbers and booleans must be equal."""
    if isinstance(found, dict) and isinstance(stored, dict):
        lines = [f"{where}: keys {sorted(found.keys() ^ stored.keys())}"] if found.keys() != stored.keys() else []
        return lines + [
            line for key in stored if key in found for line in differences(found[key], stored[key], f"{where}/{key}")
        ]
    if isinstance(found, list) and isinstance(stored, list):
        lines = [f"{where}: {len(found)} items, stored {len(stored)}"] if len(found) != len(stored) else []
        return lines + [
            line for i, (a, b) in enumerate(zip(found, stored)) for line in differences(a, b, f"{where}[{i}]")
        ]
    if isinstance(found, float) and isinstance(stored, float):
        same = found == pytest.approx(stored, rel=RELATIVE, abs=ABSOLUTE, nan_ok=True)
    else:
        same = type(found) is type(stored) and found == stored
    return [] if same else [f"{where}: {found!r}, stored {stored!r}"]
