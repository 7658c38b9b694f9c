"""What documents an episode becomes."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.episodes import made_episode

from plait.common.errors import ConfigError
from plait.config.episodes import EpisodesConfig
from plait.config.run import PrepareConfig
from plait.prepare.episodes import document, for_world, starts
from plait.prepare.raw import BadRow

EPISODE = made_episode(0, 10, cameras=("image",))


def parts(**settings):
    world, start = settings.pop("world", False), settings.pop("start")
    return document(EPISODE, start, EpisodesConfig(**settings), world).parts


def test_documents_start_every_few_steps():
    assert starts(10, EpisodesConfig()) == [0, 4, 8]
    assert starts(9, EpisodesConfig(stride=3)) == [0, 3, 6]
    assert starts(1, EpisodesConfig(stride=5)) == [0] and starts(0, EpisodesConfig()) == []


def test_a_document_is_the_task_what_is_seen_and_a_chunk_of_actions():
    made = document(EPISODE, 2, EpisodesConfig(chunk=3))
    assert [key for key, _ in made.parts] == ["text", "image", "state", "actions"]
    text, image, state, actions = (item for _, item in made.parts)
    assert text == EPISODE.task and np.array_equal(image, EPISODE.images["image"][2])
    assert np.array_equal(state, EPISODE.state[[2]]) and np.array_equal(actions, EPISODE.actions[2:5])
    assert actions.dtype == state.dtype == np.float32
    assert made.meta == {"episode": 0, "task": EPISODE.task, "start": 2} and not made.without_loss


def test_a_chunk_beyond_the_end_repeats_the_last_action():
    *_, (_, actions) = parts(start=8, chunk=4)
    assert np.array_equal(actions, EPISODE.actions[[8, 9, 9, 9]])


def test_history_comes_first_and_repeats_the_first_step():
    made = parts(start=1, history=3)
    assert [key for key, _ in made] == ["text", *["image"] * 4, "state", "actions"]
    seen = [0, 0, 0, 1]
    assert np.array_equal([item for key, item in made if key == "image"], EPISODE.images["image"][seen])
    assert np.array_equal(dict(made)["state"], EPISODE.state[seen])


def test_several_cameras_one_after_another_and_no_state():
    episode = replace(made_episode(0, 10), state=np.zeros((10, 0), np.float32))
    made = document(episode, 4, EpisodesConfig(history=1))
    assert [key for key, _ in made.parts] == ["text", "front", "front", "wrist", "wrist", "actions"]
    assert np.array_equal(made.parts[3][1], episode.images["wrist"][3])


@pytest.mark.parametrize(("start", "began"), [(0, 0), (6, 6), (7, 6), (9, 6)])
def test_a_document_for_a_world_model_has_the_image_after_its_actions(start, began):
    made = document(EPISODE, start, EpisodesConfig(chunk=3), world=True)
    assert [key for key, _ in made.parts] == ["image", "actions", "image"]
    (_, before), (_, actions), (_, after) = made.parts
    frames = EPISODE.images["image"]
    assert np.array_equal(before, frames[began]) and np.array_equal(after, frames[began + 3])
    assert np.array_equal(actions, EPISODE.actions[began : began + 3])
    assert made.meta["start"] == began and made.meta["world"] is True


def test_a_world_document_of_a_short_episode():
    (_, before), (_, actions), (_, after) = parts(start=4, chunk=20, world=True)
    assert np.array_equal(before, EPISODE.images["image"][0]) and np.array_equal(after, EPISODE.images["image"][9])
    assert np.array_equal(actions[9:], np.repeat(EPISODE.actions[[9]], 11, axis=0))


def test_which_documents_are_for_a_world_model_is_drawn_by_row():
    rows, settings = np.arange(4000), EpisodesConfig(next_share=0.25)
    chosen = for_world(settings, rows, seed=0, split="train")
    assert abs(chosen.mean() - 0.25) < 0.03
    assert np.array_equal(for_world(settings, rows[1000:], seed=0, split="train"), chosen[1000:])
    assert not np.array_equal(for_world(settings, rows, seed=1, split="train"), chosen)
    assert not np.array_equal(for_world(settings, rows, seed=0, split="validation"), chosen)
    assert for_world(EpisodesConfig(next_share=1), rows, seed=0, split="train").all()
    assert not for_world(EpisodesConfig(), rows, seed=0, split="train").any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", ["state", "actions"])
def test_numbers_that_are_none_break_the_documents_that_hold_them(key, value):
    broken = made_episode(0, 10)
    getattr(broken, key)[5, 1] = value
    settings = EpisodesConfig(chunk=3)
    good = [start for start in range(10) if start not in ((5,) if key == "state" else (3, 4, 5))]
    assert [document(broken, start, settings).meta["start"] for start in good] == good
    with pytest.raises(BadRow, match=f"{key}: step 5 of the episode has values that are NaN or infinite"):
        document(broken, 5, settings)


def test_settings_are_checked():
    for name, value in {"chunk": 0, "stride": 0, "history": -1, "next_share": 1.5}.items():
        with pytest.raises(ConfigError, match=rf"^prepare\.episodes\.{name}: "):
            EpisodesConfig(**{name: value})
    assert PrepareConfig().episodes == EpisodesConfig()
