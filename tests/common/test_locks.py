"""One writer for each folder, whoever dies."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plait.common.errors import Held
from plait.common.locks import one_writer, writer_of

HOLDER = """
import sys, time
from plait.common.locks import one_writer
with one_writer(sys.argv[1], "run"):
    open(sys.argv[1] + "/mine", "w").close()
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen:
    run = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "held\n"
    return run


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_another_process_is_kept_out_until_the_holder_is_gone(tmp_path, how):
    folder = tmp_path / "run"
    run = holder(folder)
    try:
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        for _ in range(2):
            said = rf"^run: '{folder}' is being written .*process {run.pid} .*; wait for it"
            with pytest.raises(Held, match=said), one_writer(folder, "run"):
                pass
        assert f"process {run.pid} " in writer_of(folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    finally:
        run.send_signal(how)
        run.wait()
    assert writer_of(folder) == ""
    with one_writer(folder, "run"):
        pass
    assert [p.name for p in folder.iterdir()] == ["mine"]


def test_steps_of_one_process_do_not_lock_each_other_out(tmp_path):
    with one_writer(tmp_path, "run"), one_writer(tmp_path / "data", "data.path"), one_writer(tmp_path, "run"):
        (tmp_path / "data" / "a").write_text("")
        assert writer_of(tmp_path) == ""
        with pytest.raises(ZeroDivisionError), one_writer(tmp_path, "run"):
            raise ZeroDivisionError
        refused = []

        def elsewhere():
            try:
                with one_writer(tmp_path, "run"):
                    pass
            except Held as error:
                refused.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(refused) == 1 and "another thread of this process" in refused[0]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "data"]


def test_a_folder_made_for_nothing_is_gone_again(tmp_path):
    with one_writer(tmp_path / "a/b", "run"), one_writer(tmp_path / "c/d", "--out", replaced=True):
        assert not (tmp_path / "c/d").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_fork_holds_nothing(tmp_path):
    with one_writer(tmp_path, "run"):
        child = os.fork()
        if child == 0:
            try:
                with one_writer(tmp_path, "run"):
                    os._exit(1)
            except Held:
                os._exit(7)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_many_take_turns(tmp_path):
    """A lock whose file was removed in between is no lock."""
    inside, most, go = [0], [0], threading.Barrier(8)

    def work():
        go.wait()
        for _ in range(50):
            try:
                with one_writer(tmp_path, "run"):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
            except Held:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and list(tmp_path.iterdir()) == []
