"""The documentation site."""

import os
import subprocess
import sys
from pathlib import Path

settings, site = f"{os.environ['CHECKOUT']}/mkdocs.yml", Path("site").absolute()
subprocess.run([sys.executable, "-m", "mkdocs", "build", "-q", "-f", settings, "-d", str(site)], check=True)
assert (site / "index.html").stat().st_size > 1000
