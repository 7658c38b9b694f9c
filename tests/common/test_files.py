"""Folders take the place of others so that a kill at any instant loses nothing."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plait.common import files
from plait.common.files import atomic_folder, from_json, recover_all, remove_folder, write_json

CALLS = [(os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "fsync"), (os, "mkdir")]
"""What the file system is asked for, besides writing into files."""


def write(path: Path, text: str) -> None:
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text(text)
        (temporary / "b").write_text(text)


def content(path: Path) -> set[str]:
    return {(path / name).read_text() for name in ("a", "b")}


def killed_at(number: int, work) -> bool:
    """Do some work in a child that dies before its ``number``-th call to the file system; say whether it died."""
    child = os.fork()
    if child == 0:
        count = [0]

        def counted(call):
            def calling(*arguments, **named):
                count[0] += 1
                if count[0] == number:
                    os._exit(9)
                return call(*arguments, **named)

            return calling

        for module, name in CALLS:
            setattr(module, name, counted(getattr(module, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def kill_everywhere(folder: Path) -> None:
    """Kill a writer at every call, and whoever ends that, too."""
    number, died = 0, True
    while died:
        number += 1
        place = folder / str(number)
        write(place / "x", "old")
        died = killed_at(number, lambda place=place: write(place / "x", "new"))
        for second in range(1, 5):
            copy = folder / f"{number}-{second}"
            shutil.copytree(place, copy)
            killed_at(second, lambda copy=copy: recover_all(copy))
            recover_all(copy)
            assert content(copy / "x") in ({"old"}, {"new"}), (number, second)
            write(copy / "x", "next")
            assert content(copy / "x") == {"next"} and [p.name for p in copy.iterdir()] == ["x"], (number, second)
    assert number > 8


def test_killed_at_any_call_the_old_or_the_new_folder_is_whole(tmp_path):
    """In a process of its own: a fork of one that has loaded torch takes long."""
    run = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(list(tmp_path.iterdir())) > 50


def test_a_folder_that_is_removed_never_stands_half(tmp_path):
    for number in range(1, 6):
        path = tmp_path / f"x{number}"
        write(path, "old")
        killed_at(number, lambda path=path: remove_folder(path))
        assert not path.exists() or content(path) == {"old"}
        remove_folder(path)
        assert not path.exists()


def test_an_error_while_it_is_written_leaves_the_old_one(tmp_path):
    write(tmp_path / "x", "old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "x") as temporary:
        (temporary / "a").write_text("new")
        raise KeyboardInterrupt
    assert content(tmp_path / "x") == {"old"} and len(list(tmp_path.iterdir())) == 1


def test_a_folder_put_aside_is_never_a_leftover(tmp_path, monkeypatch):
    """What a writer that was killed between two renames leaves is all there is of the old folder."""
    write(tmp_path / "x", "old")
    replace = os.replace

    def dying(source, target):
        if Path(target).name == "x":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "x", "new")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "x"):
        raise ZeroDivisionError
    assert content(tmp_path / "x") == {"old"}


def test_a_file_of_a_killed_writer_goes_when_it_is_written_next(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / f".a.json.{dead.stdout.strip()}.tmp").write_text("half")
    kept = [f".a.json.{os.getppid()}.tmp", ".a.json.tmp"]
    for name in kept:  # of one that lives, and of somebody else
        (tmp_path / name).write_text("half")
    files.write_json(tmp_path / "a.json", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "a.json"])


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # nobody cuts the power here
    kill_everywhere(Path(sys.argv[1]))


def test_numbers_that_json_does_not_have(tmp_path):
    """What is written is JSON for every reader, however deep a number that is not finite stands."""
    figures = {"loss": math.nan, "worst": math.inf, "name": "fox", "steps": 3}
    write_json(tmp_path / "a.json", {"figures": figures, "rows": [{"least": -math.inf}, (math.nan,)]})

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found["rows"] == [{"least": "-Infinity"}, ["NaN"]]
    assert repr(from_json(found["figures"])) == repr(figures)
