"""Peak host memory: every page of the process tree counts once, and the maximum is kept."""

import os
import subprocess
import sys
import textwrap

import pytest

from plait.train import host_memory, metrics
from plait.train.host_memory import MemoryWatch

needs_pss = pytest.mark.skipif(not host_memory.HAS_PSS, reason="this kernel has no smaps_rollup")
HELD = 120_000_000


def figures(code: str) -> list[float]:
    """Run code in a process of its own and return the numbers that it prints, in GB."""
    head = f"import os, subprocess, sys, time\nfrom plait.train.host_memory import MemoryWatch\nHELD = {HELD}\n"
    run = subprocess.run([sys.executable, "-c", head + textwrap.dedent(code)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [float(word) for word in run.stdout.split()]


@needs_pss
def test_a_childs_own_memory_counts_once():
    before, after = figures("""
        child_code = "import sys; x = b'a' * int(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
        with MemoryWatch() as watch:
            before = watch.peak_gb
            child = subprocess.Popen([sys.executable, "-c", child_code, str(HELD)], stdin=-1, stdout=-1, text=True)
            child.stdout.readline()
            with MemoryWatch():  # takes a sample for all
                pass
            child.communicate("")
        print(before, watch.peak_gb)
    """)
    assert HELD / 1e9 < after - before < 1.5 * HELD / 1e9


@needs_pss
def test_what_a_forked_child_inherits_is_not_counted_twice():
    before, during = figures("""
        held = b"a" * HELD
        with MemoryWatch() as watch:
            before = watch.peak_gb
            to_child, from_parent = os.pipe()
            if not os.fork():
                os.read(to_child, 1)
                os._exit(0)
            with MemoryWatch():
                pass
            os.write(from_parent, b"x")
            os.wait()
        print(before, watch.peak_gb)
    """)
    assert before > HELD / 1e9 and during - before < 0.25 * HELD / 1e9


@needs_pss
def test_memory_that_is_freed_later_counts_as_peak():
    before, held, after, later = figures("""
        with MemoryWatch() as watch:
            before = watch.peak_gb
            block = b"a" * HELD
            while watch.peak_gb < before + 0.9 * HELD / 1e9:  # the thread's own samples
                time.sleep(0.01)
            held = watch.peak_gb
            del block
        with MemoryWatch() as second:
            pass
        print(before, held, watch.peak_gb, second.peak_gb)
    """)
    assert after >= held >= before + 0.9 * HELD / 1e9
    assert later < held - 0.5 * HELD / 1e9, "a watch knows nothing of what came before it"


def test_where_the_kernel_has_no_pss_the_resident_memory_of_the_main_process_stands_for_it(monkeypatch):
    monkeypatch.setattr(host_memory, "HAS_PSS", False)
    with MemoryWatch() as watch:
        pass
    assert watch.peak_gb == pytest.approx(host_memory.resident_bytes() / 1e9, rel=0.2)
    assert "RSS" in host_memory.MEASURE or "PSS" in host_memory.MEASURE
    assert host_memory.proportional_bytes(2**22 + os.getpid()) is None, "a process that has ended counts nothing"
    assert metrics.peak_device_memory_gb("cpu") == 0.0
