"""Freed memory is kept for the next step."""

import subprocess
import sys

import pytest

from plait.common.malloc import keep_freed_memory

COUNT = """
import resource, torch
from plait.common.malloc import keep_freed_memory
if {keep}: keep_freed_memory()
def use(): return torch.ones(10_000_000).sum()  # 40 MB
for _ in range(20): use()  # until blocks have found their places
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about Linux's pages")
def test_blocks_that_were_freed_cost_no_new_pages():
    if not keep_freed_memory():
        pytest.skip("not glibc")
    pages = {keep: int(subprocess.check_output([sys.executable, "-c", COUNT.format(keep=keep)])) for keep in (0, 1)}
    assert pages[1] < 100 < pages[0]  # 40 MB are 9,766 pages, each time
