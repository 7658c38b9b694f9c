"""Builds the package with the shipped configs and studies in it; everything else stands in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs", "studies")
"""Folders beside the package that an installed one has inside (plait/config/shipped.py)."""


class BuildWithShipped(build_py):
    """Copies the shipped folders into the built package. A checkout finds its own."""

    def run(self):
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            for name in SHIPPED:
                target = Path(self.build_lib) / "plait" / name
                shutil.rmtree(target, ignore_errors=True)
                # verdicts/ is about this repository alone
                shutil.copytree(Path(__file__).parent / name, target, ignore=shutil.ignore_patterns("verdicts"))


setup(cmdclass={"build_py": BuildWithShipped})
