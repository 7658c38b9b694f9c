"""A shell's script."""

import contextlib
import io

from plait.cli import main

with contextlib.redirect_stdout(io.StringIO()) as script:
    assert main(["completion", "bash"]) == 0
assert "--train.learning_rate" in script.getvalue()
