"""Builds the package with the shipped configs and studies and its commit in it; all else stands in pyproject.toml."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
SHIPPED = ("configs", "studies")
"""Folders beside the package that an installed one has inside (plait/config/shipped.py)."""
COMMIT = runpy.run_path(str(HERE / "plait" / "common" / "commit.py"))


def write_commit(package: Path) -> None:
    """Write into a package the commit that it is built from, which its sources know: a checkout, or an sdist."""
    if found := COMMIT["commit"]():
        (package / COMMIT["BUILT_FROM"]).write_text(found + "\n", encoding="utf-8")


class BuildWithShipped(build_py):
    """Copies the shipped folders into the built package. A checkout finds its own."""

    def run(self):
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib) / "plait"
            for name in SHIPPED:
                shutil.rmtree(package / name, ignore_errors=True)
                # verdicts/ is about this repository alone
                shutil.copytree(HERE / name, package / name, ignore=shutil.ignore_patterns("verdicts", "__pycache__"))
            write_commit(package)


class SourcesWithCommit(sdist):
    """Sources that know which commit they are of."""

    def make_release_tree(self, base_dir, files):
        """Copy the files, and write the commit."""
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir) / "plait")


setup(cmdclass={"build_py": BuildWithShipped, "sdist": SourcesWithCommit})
