"""LeRobotDataset v3: what is written is read back, in documents, prepared and exported; and what is wrong is said."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import ROOT
from helpers.episodes import KEYS, TASKS, made_episode, made_episodes, source_of
from helpers.pages import blocks

from plait.cli import main
from plait.common.errors import ConfigError, DataError
from plait.config.episodes import EpisodesConfig
from plait.config.file import from_dict, to_dict
from plait.config.run import RunConfig
from plait.data.shards import ShardSource
from plait.prepare import lerobot_write
from plait.prepare.lerobot_write import write_lerobot
from plait.prepare.raw import BrokenRow, RawDocument, raw_documents
from plait.prepare.raw_sources import opened, remade
from plait.prepare.stages import build_codecs, prepare

pytest.importorskip("av")
ALL = {"validation_share": 0.0}
EPISODES = made_episodes()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the same episodes with images embedded, with videos, and with one camera of each."""
    folder = tmp_path_factory.mktemp("lerobot")
    kinds = {
        kind: write_lerobot(folder / kind, EPISODES, robot="arm", image_format=kind) for kind in ("image", "video")
    }
    mixed = shutil.copytree(kinds["video"], folder / "mixed")
    table = pq.read_table(kinds["image"] / "data/chunk-000/file-000.parquet")
    pq.write_table(table.drop_columns(["observation.images.wrist"]), mixed / "data/chunk-000/file-000.parquet")
    change_info(mixed, lambda info: info["features"]["observation.images.front"].update(dtype="image"))
    return kinds | {"mixed": mixed}


@pytest.fixture
def copied(written, tmp_path):
    """Return a function that copies a dataset, to be changed."""
    return lambda kind: shutil.copytree(written[kind], tmp_path / kind)


def change_info(folder, change):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def change_table(folder, name, **columns):
    """Replace columns of a Parquet file; None takes one out."""
    table = pq.read_table(folder / name)
    for column, values in columns.items():
        at = table.column_names.index(column)
        table = table.remove_column(at)
        if values is not None:
            table = table.add_column(at, column, pa.array(values))
    pq.write_table(table, folder / name)


DATA, EPISODES_TABLE = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


def check_image(image, frames, step, *, exact):
    if exact:
        assert np.array_equal(image, frames[step])
    else:
        errors = abs(frames.astype(int) - image).mean(axis=(1, 2, 3))
        assert errors.argmin() == step and errors[step] < 8


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "video", "mixed"])
def test_documents_are_what_was_written(written, kind):
    source = source_of(written[kind], **ALL, episodes=EpisodesConfig(chunk=8, stride=4))
    documents = list(source.read("train", 0, source.splits()["train"]))
    assert source.splits() == {"train": 3 + 2 + 6 + 1 + 3, "validation": 0}
    assert [(d.meta["episode"], d.meta["start"]) for d in documents] == [
        (i, start) for i, e in enumerate(EPISODES) for start in range(0, len(e), 4)
    ]
    for made in documents:
        episode, start = EPISODES[made.meta["episode"]], made.meta["start"]
        assert [key for key, _ in made.parts] == [*KEYS]
        text, front, wrist, state, actions = (item for _, item in made.parts)
        assert text == episode.task == made.meta["task"]
        assert np.array_equal(state, episode.state[[start]])
        assert np.array_equal(actions, episode.actions[np.arange(start, start + 8).clip(max=len(episode) - 1)])
        check_image(front, episode.images["front"], start, exact=kind != "video")
        check_image(wrist, episode.images["wrist"], start, exact=kind == "image")


def same(a: RawDocument, b: RawDocument) -> bool:
    return a.meta == b.meta and all(
        x[0] == y[0] and np.array_equal(x[1], y[1]) for x, y in zip(a.parts, b.parts, strict=True)
    )


def test_reading_does_not_depend_on_what_was_read_before(written):
    settings = {"validation_share": 0.4, "episodes": EpisodesConfig(chunk=3, stride=2, history=2, next_share=0.5)}
    source = source_of(written["mixed"], **settings)
    whole = {split: list(source.read(split, 0, n)) for split, n in source.splits().items()}
    assert {bool(d.meta.get("world")) for rows in whole.values() for d in rows} == {True, False}
    others = source_of(written["mixed"], **settings)
    for split, rows in whole.items():
        for row in reversed(range(len(rows))):
            assert same(next(others.read(split, row, row + 1)), rows[row])


def test_images_of_history_and_world_documents_are_all_decoded(written):
    settings = EpisodesConfig(chunk=3, stride=5, history=2, next_share=0.6)
    for i in range(40):
        source = source_of(written["image"], **ALL, episodes=settings)
        source._seed = i  # other documents are for the world model
        for made in source.read("train", 0, source.splits()["train"]):
            assert all(item.any() for key, item in made.parts if key in ("front", "wrist")), made.meta
        if i == 3:
            break


def test_whole_episodes_are_held_out(written):
    for share, wanted in ((0.0, 0), (0.01, 1), (0.4, 2), (0.99, 4)):
        source = source_of(written["image"], validation_share=share)
        found = {s: {d.meta["episode"] for d in source.read(s, 0, n)} for s, n in source.splits().items()}
        assert len(found["validation"]) == wanted and len(found["train"]) == 5 - wanted
        assert not found["train"] & found["validation"]


def test_only_wanted_parts_are_read(written, tmp_path):
    shutil.copytree(written["video"], tmp_path / "data")
    shutil.rmtree(tmp_path / "data/videos")
    with pytest.raises(
        DataError, match=r"has no file 'videos/observation.images.front/chunk-000/file-000.mp4', in which"
    ):
        source_of(tmp_path / "data")
    source = source_of(written["video"], keys=["actions", "text"], **ALL)
    assert [key for key, _ in next(source.read("train", 0, 1)).parts] == ["text", "actions"]


def test_a_single_camera_is_the_image(tmp_path):
    episodes = [made_episode(0, 5, cameras=("anything",))]
    source = source_of(write_lerobot(tmp_path / "d", episodes, robot="", image_format="image"), ["image"], **ALL)
    assert source.parts() == ["text", "image", "state", "actions"]
    assert np.array_equal(next(source.read("train", 0, 1)).parts[0][1], episodes[0].images["anything"][0])


def test_numbers_alone_and_one_number_a_step(tmp_path):
    episode = made_episode(0, 6, cameras=())
    episode = replace(episode, state=np.zeros((6, 0), np.float32), actions=episode.actions[:, :1])
    source = source_of(write_lerobot(tmp_path / "d", [episode], robot="", image_format="image"), **ALL)
    assert source.parts() == ["text", "actions"]
    assert np.array_equal(next(source.read("train", 0, 1)).parts[1][1][:6], episode.actions)


def test_several_files_and_tasks_within_an_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_write, "DATA_MB", 0)
    monkeypatch.setattr(lerobot_write, "VIDEO_MB", 0)
    monkeypatch.setattr(lerobot_write, "FILES_IN_CHUNK", 2)
    monkeypatch.setattr(lerobot_write, "_EPISODES_AT_ONCE", 2)
    folder = write_lerobot(tmp_path / "d", EPISODES, robot="", image_format="video")
    assert len(list(folder.glob("data/*/*.parquet"))) == 5 and (folder / "data/chunk-002/file-000.parquet").exists()
    assert len(list(folder.glob("videos/*/*/*.mp4"))) == 10 and len(list(folder.glob("meta/episodes/*/*"))) == 3
    name = "data/chunk-001/file-000.parquet"  # episode 2
    change_table(folder, name, task_index=[0] * 8 + [1] * 15)
    source = source_of(folder, **ALL)
    for read, episode in zip(source.episodes("train"), EPISODES, strict=True):
        assert np.array_equal(read.actions, episode.actions)
        check_image(read.images["wrist"][-1], episode.images["wrist"], len(episode) - 1, exact=False)
    tasks = [d.meta["task"] for d in source.read("train", 5, 11)]
    assert tasks == [TASKS[0]] * 2 + [TASKS[1]] * 4


def test_images_are_made_as_small_as_the_codec_wants_them(written):
    codecs = build_codecs(from_dict(RunConfig, run_values("")).modalities)
    source = source_of(written["image"], codecs=codecs, **ALL)
    assert [item.shape for key, item in next(source.read("train", 0, 1)).parts if key in KEYS[1:3]] == [
        (32, 32, 3), (64, 96, 3)
    ]  # fmt: skip
    assert next(source.episodes("train")).images["front"].shape == (10, 64, 96, 3)


# -- what is wrong ----------------------------------------------------------------------------------------------------


def take_out(folder, name):
    (folder / name).unlink()


WRONG = {
    "no info": (lambda f: take_out(f, "meta/info.json"), "is no LeRobotDataset, there is no file 'meta/info.json'"),
    "cut info": (lambda f: (f / "meta/info.json").write_text("{"), "has the file .*, which cannot be read"),
    "a list": (lambda f: (f / "meta/info.json").write_text("[]"), "has the codebase_version ''"),
    "v2": (lambda f: change_info(f, lambda i: i.update(codebase_version="v2.1")),
           "is a LeRobotDataset v2.1, plait reads v3; convert it by LeRobot 0.4: "
           "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id OWNER/NAME --root "),
    "v4": (lambda f: change_info(f, lambda i: i.update(codebase_version="v4.0")), "has the codebase_version 'v4.0'"),
    "no rate": (lambda f: change_info(f, lambda i: i.update(fps=0)), "has the fps 0 in"),
    "no features": (lambda f: change_info(f, lambda i: i.update(features={"action": 1})), "has no features in"),
    "no actions": (lambda f: change_info(f, lambda i: i["features"].pop("action")), "has no feature 'action', only"),
    "actions of two axes": (lambda f: change_info(f, lambda i: i["features"]["action"].update(shape=[2, 2])),
                            r"has the feature 'action' of shape \[2, 2\], it must have one axis"),
    "no image": (lambda f: change_info(f, lambda i: i["features"]["observation.images.front"].update(shape=[64])),
                 r"feature 'observation.images.front' of shape \[64\] is no image"),
    "outside": (lambda f: change_info(f, lambda i: i.update(data_path="../{chunk_index}.parquet")), "leads out of its"),
    "unknown field": (lambda f: change_info(f, lambda i: i.update(data_path="{x}")), "which cannot be filled in"),
    "no tasks": (lambda f: take_out(f, "meta/tasks.parquet"), "has no file 'meta/tasks.parquet'"),
    "no sentences": (lambda f: change_table(f, "meta/tasks.parquet", __index_level_0__=None), "has no tasks in"),
    "no episodes": (lambda f: take_out(f, EPISODES_TABLE), "has no episodes, there is no file meta/episodes"),
    "no data": (lambda f: take_out(f, DATA), f"has no file '{DATA}', in which episode 0 is"),
    "not Parquet": (lambda f: (f / EPISODES_TABLE).write_bytes(b"PAR1"), "which cannot be read"),
    "no column": (lambda f: change_table(f, EPISODES_TABLE, length=None), "has no column 'length' in 'meta/episodes"),
    "no frames": (lambda f: change_table(f, EPISODES_TABLE, length=[10, 0, 23, 1, 12]), "has episode 1 without frames"),
    "a hole": (lambda f: change_table(f, EPISODES_TABLE, length=[10, None, 23, 1, 12]), "an episode without 'length'"),
    "twice": (lambda f: change_table(f, EPISODES_TABLE, episode_index=[0, 1, 1, 2, 3]), "has episode 1 twice"),
    "other length": (lambda f: change_table(f, EPISODES_TABLE, length=[9, 7, 23, 1, 12]),
                     "has episode 0 whose length is not that of its rows"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_dataset_is_refused_in_one_sentence(copied, wrong):
    change, said = WRONG[wrong]
    folder = copied("video")
    change(folder)
    with pytest.raises(DataError, match=f"^prepare.source: .*{said}") as error:
        source_of(folder)
    assert "\n" not in str(error.value)


def actions_with(rows, value):
    return [[value if i in rows else 0.0, 0.0, 0.0, 0.0] for i in range(53)]


VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"
FRONT, BEGIN = "observation.images.front", "videos/observation.images.front/from_timestamp"
BROKEN = {
    "NaN": (lambda f: change_table(f, DATA, action=actions_with([13], np.nan)),
            {(1, 0): "actions: step 3 of the episode", (0, 8): None, (1, 4): None}),
    "infinite": (lambda f: change_table(f, DATA, action=actions_with([9], np.inf)),
                 {(0, 8): "actions: step 9", (0, 0): None}),
    "missing": (lambda f: change_table(f, DATA, action=[None if i == 9 else [0.0] * 4 for i in range(53)]),
                {(0, 0): "action: step 9 of episode 0 has 0 numbers, meta/info.json says 4", (1, 0): None}),
    "other size": (lambda f: change_table(f, DATA, action=[[0.0] * 5] * 53),
                   {(2, 4): "action: step 0 of episode 2 has 5 numbers, meta/info.json says 4"}),
    "scalar": (lambda f: change_table(f, DATA, action=[0.0] * 53), {(0, 0): "episode 0 has one number a step"}),
    "no column": (lambda f: change_table(f, DATA, action=None), {(0, 0): "has no column 'action' in"}),
    "no task": (lambda f: change_table(f, DATA, task_index=[7] * 53), {(0, 0): "has no task 7"}),
    "too few rows": (lambda f: pq.write_table(pq.read_table(f / DATA).slice(0, 50), f / DATA),
                     {(0, 0): None, (4, 0): "has 50 rows in 'file-000.parquet', where episode 4 ends at 53"}),
    "other rows": (lambda f: change_table(f, DATA, episode_index=[0] * 53),
                   {(0, 0): None, (1, 0): "has rows of other episodes where"}),
    "other pixels": (lambda f: change_info(f, lambda i: i["features"][FRONT].update(shape=[60, 96, 3])),
                     {(0, 0): "front: the image of step 0 has 64 x 96 pixels, meta/info.json says 60 x 96"}),
    "cut video": (lambda f: (f / VIDEO).write_bytes((f / VIDEO).read_bytes()[:900]),
                  {(0, 0): "video 'file-000.mp4' cannot be decoded"}),
    "no frame": (lambda f: change_table(f, EPISODES_TABLE, **{BEGIN: [9.0] * 5}),
                 {(0, 0): "video 'file-000.mp4' has no frame at 9.000 s"}),
}  # fmt: skip


@pytest.mark.parametrize("wrong", BROKEN)
def test_what_is_broken_in_an_episode_breaks_its_documents(copied, wrong):
    change, said = BROKEN[wrong]
    folder = copied("video")
    change(folder)
    source = source_of(folder, **ALL, episodes=EpisodesConfig(chunk=4, stride=4))
    rows = {}
    for row in source.read("train", 0, source.splits()["train"]):
        if isinstance(row, BrokenRow):
            rows[int(row.file.removeprefix("episode ")), row.line] = row.reason
        else:
            rows[row.meta["episode"], row.meta["start"]] = None
    for place, reason in said.items():
        assert (rows[place] is None) if reason is None else reason in rows[place], rows[place]
    assert all("\n" not in reason for reason in rows.values() if reason)


def test_embedded_images_that_are_none(copied):
    for data, said in ((b"GIF89", "step 0 cannot be read"), (b"", "step 0 is not embedded in the data")):
        folder = copied("image")
        table = pq.read_table(folder / DATA)
        cells = [{"bytes": data, "path": "x.png"}] * 53
        change_table(folder, DATA, **{"observation.images.wrist": pa.array(cells, table.schema.types[-1])})
        (row,) = source_of(folder, **ALL).read("train", 0, 1)
        assert said in row.reason
        shutil.rmtree(folder)


# -- preparing --------------------------------------------------------------------------------------------------------


def run_values(folder, **settings) -> dict:
    """Return the settings of the page's example, with a smaller model, on a dataset."""
    page = (ROOT / "docs/robots.md").read_text(encoding="utf-8")
    values = yaml.safe_load(blocks("yaml", page)[0])
    values["model"] |= {"width": 32, "num_layers": 1}
    modalities = values["model"]["modalities"]
    modalities["text"]["codec_options"] = {"vocab_size": 280}
    modalities["front"]["codec_options"]["size"] = 32
    modalities["actions"]["codec_options"]["steps"] = 4
    episodes = {"chunk": 4, "stride": 3, "next_share": 0.3}
    values["prepare"] |= {"source": f"lerobot:{folder}", "validation_share": 0.2, "num_workers": 1}
    values["prepare"] |= {"episodes": episodes} | settings
    return values


@pytest.fixture(scope="module")
def prepared(written, tmp_path_factory):
    """Return the config of a run whose data are prepared, and the figures."""
    config = from_dict(RunConfig, run_values(written["mixed"]) | {"out": str(tmp_path_factory.mktemp("run") / "run")})
    return config, prepare(config)


def test_a_dataset_is_prepared(prepared):
    config, figures = prepared
    report = json.loads(Path(config.data.path, "report.json").read_text())
    assert figures["documents_held_out"] > 0 and not figures["broken_rows"] and figures["columns_left_out"] == 1
    (account,) = report["sources"]
    assert account["form"] == "LeRobotDataset v3.0" and account["columns"]["left out"] == ["observation.images.wrist"]
    assert account["columns"]["parts"]["action"] == "actions" and not account["parts"]["front"]["left out"]
    source = ShardSource(config.data.path, "train")
    orders = {tuple(p.modality for p in source.document(i).parts) for i in range(len(source))}
    assert orders == {("text", "front", "state", "actions"), ("front", "actions", "front")}
    document = source.document(0)
    assert {p.modality: len(p) for p in document.parts}["actions"] == 4 and "episode" in source.meta(0)


def test_raw_documents_are_opened_again(prepared, written, tmp_path):
    config, _ = prepared
    codecs = build_codecs(config.modalities)
    assert remade(config.data.path, config.prepare, codecs) is None
    other = replace(config.prepare, episodes=EpisodesConfig())  # what the folder was made with counts
    raw = opened(config.data.path, other, codecs)
    source = ShardSource(config.data.path, "validation")
    assert raw.splits()["validation"] == len(source)
    rows = raw_documents(raw, "validation", range(len(source)))
    assert [row.meta for row in rows] == [source.meta(i) for i in range(len(source))]
    assert opened(config.data.path, replace(config.prepare, source=f"lerobot:{written['image']}"), codecs) is None
    assert opened(config.data.path, replace(config.prepare, source=f"lerobot:{tmp_path}"), codecs) is None


def test_changed_data_and_settings_are_noticed(prepared, copied, tmp_path):
    config, figures = prepared
    assert prepare(config) == figures
    moved = copied("mixed")
    values = to_dict(config)
    values["prepare"]["source"] = f"lerobot:{moved}"
    assert prepare(from_dict(RunConfig, values)) == figures  # a dataset may move
    change_table(moved, DATA, action=actions_with([], 0))
    with pytest.raises(ConfigError, match=r"^prepare\.source: 'lerobot .* differs from .* was made with"):
        prepare(from_dict(RunConfig, values))
    values = to_dict(config)
    values["prepare"]["episodes"]["chunk"] = 8
    with pytest.raises(ConfigError, match=r"^prepare\.episodes\.chunk: 8 differs from 4"):
        prepare(from_dict(RunConfig, values))


def test_broken_documents_are_listed_and_left_out(copied, tmp_path):
    folder = copied("mixed")
    change_table(folder, DATA, action=[[0.1 * i, np.nan if i == 13 else i % 7, i % 3, i % 5] for i in range(53)])
    values = run_values(folder, max_broken_share=0.5) | {"out": str(tmp_path / "run")}
    figures = prepare(from_dict(RunConfig, values))
    broken = list(map(json.loads, (tmp_path / "run/data/broken.jsonl").read_text().splitlines()))
    assert figures["broken_rows"] == len(broken) > 0 and {row["file"] for row in broken} == {"episode 1"}
    config = from_dict(RunConfig, values)
    raw = opened(config.data.path, config.prepare, build_codecs(config.modalities))
    assert raw.splits()["train"] == figures["documents_train"]
    assert broken[0]["reason"].startswith("actions: step 3 of the episode has values that are NaN")


def test_codecs_of_parts_that_are_not_there_are_refused(written):
    values = run_values(written["mixed"])
    values["model"]["modalities"]["front"]["key"] = "image"
    with pytest.raises(ConfigError, match=r"front\.key: 'image' is not allowed, .* text, front, wrist, state, actions"):
        prepare(from_dict(RunConfig, values))
    with pytest.raises(DataError, match=f"if it is a LeRobotDataset, name it as 'lerobot:{written['mixed']}'"):
        prepare(from_dict(RunConfig, run_values("", source=str(written["mixed"]))))
    for source in (["lerobot:a", "b.jsonl"], ["lerobot:a"]):
        with pytest.raises(ConfigError, match=r"^prepare\.source: .* or lerobot:FOLDER alone, or manifests"):
            prepare(from_dict(RunConfig, run_values("", source=source)))
    values = run_values(written["mixed"])
    values["prepare"].setdefault("episodes", {})["tasks"] = ["all"]
    with pytest.raises(ConfigError, match=r"^prepare\.episodes\.tasks: \['all'\] is not allowed, .*left out"):
        prepare(from_dict(RunConfig, values))


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_run_is_exported(prepared, tmp_path, capsys):
    config, _ = prepared
    (run := tmp_path / "run").mkdir()
    (run / "config.yaml").write_text(json.dumps(to_dict(config)))
    assert main(["export", str(run), "--to", "lerobot", "--output", str(tmp_path / "demos")]) == 0
    assert "demos" in capsys.readouterr().out
    again = source_of(tmp_path / "demos", **ALL)
    info = again.dataset.info
    assert again.robot == "arm" and info["splits"] == {"train": "0:4", "validation": "4:5"} and info["fps"] == 10
    episodes = sorted(again.episodes("train"), key=len)
    for read, episode in zip(episodes, sorted(EPISODES, key=len), strict=True):
        assert read.task == episode.task and np.array_equal(read.state, episode.state)
        assert np.array_equal(read.images["front"], episode.images["front"])
    assert main(["export", str(run), "--to", "lerobot", "--out", str(tmp_path / "demos")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "lerobot", "--ema"]) == 2
    assert "leave out --ema" in capsys.readouterr().err


def test_data_without_episodes_are_not_exported(tmp_path, capsys):
    pytest.importorskip("emoji")
    values = {"model": {"modalities": {"text": {"codec": "text_bpe"}}}, "prepare": {"source": "scenes"}}
    (run := tmp_path / "run").mkdir()
    (run / "config.yaml").write_text(json.dumps(values))
    assert main(["export", str(run), "--to", "lerobot"]) == 2
    assert "have no episodes of a robot" in capsys.readouterr().err


def test_what_cannot_be_written_is_said(tmp_path):
    def refused(said, *episodes, kind="image", error=DataError):
        with pytest.raises(error, match=said):
            write_lerobot(tmp_path / "new", episodes, robot="", image_format=kind)
        assert not (tmp_path / "new").exists()

    good = made_episode(0, 4)
    refused("there are no episodes to write")
    refused("episode 1 has no steps", good, made_episode(1, 0))
    refused("episode 1 is not like the first one", good, made_episode(1, 4, cameras=("front",)))
    refused("has 4 actions, but 3 steps of 'state'", replace(good, state=good.state[:3]))
    refused("has actions that are NaN or infinite", replace(good, actions=good.actions * np.nan))
    odd = replace(good, images={"a": good.images["front"][:, :, 1:]})
    refused("64 x 95 pixels of 'a', videos need even numbers", odd, kind="video")
    refused(
        "has float32 .* as images of 'a', they must be uint8", replace(good, images={"a": np.zeros((4, 8, 8), "f4")})
    )
    refused("has no images, which videos could be made of", replace(good, images={}), kind="video")
    refused("image_format: 'gif' is not allowed", good, kind="gif", error=ConfigError)


def test_statistics_and_names(written):
    stats = json.loads((written["image"] / "meta/stats.json").read_text())
    actions = np.concatenate([e.actions for e in EPISODES])
    assert np.allclose(stats["action"]["mean"], actions.mean(0), atol=1e-6)
    assert np.allclose(stats["action"]["std"], actions.std(0), atol=1e-6)
    assert np.allclose(stats["action"]["max"], actions.max(0)) and stats["action"]["count"] == [53]
    assert np.shape(stats["observation.images.front"]["q50"]) == (3, 1, 1)
    frames = np.concatenate([e.images["front"] for e in EPISODES]) / 255
    for name in ("mean", "std"):
        found = np.ravel(stats["observation.images.front"][name])
        assert np.allclose(found, getattr(frames, name)(axis=(0, 1, 2)))
    table = pq.read_table(written["video"] / EPISODES_TABLE)
    assert {"tasks", "length", "meta/episodes/file_index", "stats/action/q99"} <= {*table.column_names}
    assert table.column("videos/observation.images.wrist/from_timestamp").to_pylist() == [0.0, 1.0, 1.7, 4.0, 4.1]
