"""Who hangs: the watchdog's judgement on what ranks say of themselves. tests/train/test_recovery.py lets ranks hang."""

import threading
import time

import pytest

from plait.common.errors import PlaitError
from plait.train.watchdog import Beat, RankLost, Watchdog, judge, lost_ranks, where

NOW, SECONDS = 1000.0, 10.0


def heard(*ranks: dict) -> dict:
    """Return the last beats of ranks: each is the fields that differ from a rank that waits at place 7 of step 3."""
    usual = {"number": 5, "place": 7, "step": 3, "phase": "counts", "still": 20.0, "frame": "c.py:1 f",
             "collective": "all_reduce", "process": "process 1 on host", "done": False}  # fmt: skip
    return {
        r: (Beat(**usual | {k: v for k, v in b.items() if k != "heard"}), NOW - b.get("heard", 1))
        for r, b in enumerate(ranks)
    }


def judged(*ranks: dict, world_size: int = 0) -> str:
    return judge(heard(*ranks), world_size or len(ranks), SECONDS, NOW)


def test_nobody_hangs_while_anyone_moves():
    assert judged({}, {"still": 5.0, "place": 6}) == ""
    assert judged({}, {}, world_size=3) == "", "one has not been heard yet"
    assert judged({"done": True, "heard": 99}, {"done": True, "heard": 99}) == ""
    assert judged({"still": 1.0}, {"done": True, "heard": 99}) == "", "who is done says nothing more"


def test_the_one_that_is_behind_is_named():
    said = judged({}, {"place": 6, "step": 3, "phase": "reading data", "collective": "", "frame": "io.py:9 read"}, {})
    assert said == (
        "training: rank 1 is hanging in 'reading data' of step 3 (io.py:9 read), process 1 on host, while others wait "
        "for all_reduce in 'counts' of step 3; no progress for train.watchdog_seconds (10)"
    )


def test_of_several_at_the_same_place_the_one_that_waits_for_nobody_is_named():
    assert judged({}, {}, {"collective": "", "frame": "x.py:2 loop"}).startswith(
        "training: rank 2 is hanging in 'counts'"
    )
    assert judged({}, {}).startswith("training: ranks 0, 1 are hanging in 'counts'"), "nobody can tell"


def test_the_one_that_is_not_heard_from_is_named():
    assert judged({"still": 1.0}, {"heard": 11, "still": 0.0}).startswith(
        "training: rank 1 is not heard from since 'counts'"
    )


def test_what_a_thread_does():
    go = threading.Event()
    thread = threading.Thread(target=go.wait, args=(60,))
    thread.start()
    for _ in range(1000):  # until it waits
        frame, collective = where(thread.ident)
        if frame.endswith(" wait"):
            break
        time.sleep(0.01)
    go.set()
    assert frame.startswith("threading.py:") and frame.endswith(" wait") and collective == ""


def test_one_process_is_not_watched():
    with Watchdog(0.01) as watchdog:
        watchdog.at(1, "anything")
        assert not watchdog._threads


def test_a_lost_rank_is_one_sentence_and_other_errors_stay():
    with pytest.raises(RankLost, match="another rank ended"), lost_ranks():
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:7914")
    with pytest.raises(RuntimeError, match="other"), lost_ranks():
        raise RuntimeError("other")
    with pytest.raises(PlaitError, match="NCCL error"), lost_ranks():
        raise PlaitError("said by plait: NCCL error")
