"""Preparing a folder: the same bytes however many workers, wherever it was stopped; clear refusals."""

import dataclasses
import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import ROOT
from helpers.fake_data import CODEC_NAMES
from helpers.models import with_modality
from helpers.prepared import ROWS, config_for, files
from PIL import Image

from plait.codecs import CODECS
from plait.common.errors import ConfigError, DataError, ResourceError
from plait.common.progress import Bar, QuietProgress
from plait.config.run import RunConfig
from plait.config.run_records import ModalitySettings
from plait.data.loader import Loader
from plait.data.shards import ShardSource, read_index
from plait.prepare import stages as stages
from plait.prepare.claim import check_folder, claim_folder, prepared_settings
from plait.prepare.encode import Setup, Workers, encode_shard
from plait.prepare.stages import prepare, spread_blocks
from plait.run.steps import prepare_step


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Return a manifest of ROWS documents, three of them broken."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (12, 9 + i, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        soundfile.write(folder / f"{i}.flac", rng.uniform(-0.9, 0.9, 500 + 100 * i), 8000)
    soundfile.write(folder / "short.wav", np.ones(50), 8000)
    rows = []
    for i in range(ROWS):
        parts = [{"text": f"document {i}"}, {"image": f"{i % 5}.png"}, {"audio": f"{i % 5}.flac"}]
        rows.append({"parts": [parts[j] for j in rng.permutation(3)[: rng.integers(1, 4)]], "meta": {"row": i}})
    rows[20] = {"parts": [{"image": "gone.png"}]}
    rows[70] = {"parts": [{"text": ""}]}
    rows[140] = {"parts": [{"text": "a"}, {"audio": "short.wav"}]}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


run_all = Workers.run


pytestmark = pytest.mark.usefixtures("fake_codecs")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, manifest):
    with pytest.MonkeyPatch.context() as patch:
        for name, place in CODEC_NAMES.items():
            patch.setitem(CODECS, name, place)
        folder = tmp_path_factory.mktemp("prepared")
        figures = prepare(config_for(folder, manifest))
    report = json.loads((folder / "report.json").read_text())
    assert report["figures"] == figures
    return folder, report


def test_from_a_manifest_to_batches(prepared, manifest):
    folder, report = prepared
    assert report["rows"] == ROWS and report["figures"]["broken_rows"] == 3
    assert report["figures"]["speech_codec_items"] == report["quality"]["speech"]["items"]
    broken = [json.loads(line) for line in (folder / "broken.jsonl").read_text().splitlines()]
    assert [row["line"] for row in broken] == [21, 71, 141]
    reasons = ["there is no file 'gone.png'", "it is empty", "it is shorter than 100 samples"]
    for row, reason in zip(broken, reasons, strict=True):
        assert row["reason"].endswith(reason)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    seen = []
    for split in ("train", "validation"):
        source = ShardSource(folder, split)
        assert len(source) == report["splits"][split]["documents"]
        for i in range(len(source)):
            document = source.document(i)
            row = rows[document.meta["row"]]
            keys = {"text": "text", "image": "image", "speech": "audio"}
            assert [keys[p.modality] for p in document.parts] == [next(iter(part)) for part in row["parts"]]
            for part, written in zip(document.parts, row["parts"], strict=True):
                if part.modality == "text":
                    assert bytes(part.ids.astype(np.uint8)).decode() == written["text"]
                assert part.grid == ((4, 4) if part.modality == "image" else ())
            seen.append(document.meta["row"])
    assert sorted(seen) == sorted(set(range(ROWS)) - {20, 70, 140})
    assert report["quality"]["speech"]["items"] > 0
    assert report["splits"]["train"]["modalities"]["image"]["tokens"] % 16 == 0
    assert set(report["seconds"]) == {"read", "image codec", "encode", "codec quality"}
    assert not (folder / "work").exists()
    batch, _ = next(iter(Loader(config_for(folder, manifest))))
    assert batch.num_tokens <= 128


def test_the_number_of_workers_changes_nothing(prepared, manifest, tmp_path):
    prepare(config_for(tmp_path, manifest, num_workers=2))
    assert files(tmp_path) == files(prepared[0])


def test_the_size_of_shards_changes_no_document(prepared, manifest, tmp_path):
    prepare(config_for(tmp_path, manifest, shard_documents=65))  # one row is left after the first block
    for split in ("train", "validation"):
        sources = [ShardSource(folder, split) for folder in (prepared[0], tmp_path)]
        assert len(sources[0]) == len(sources[1])
        for i in range(len(sources[0])):
            a, b = (source.document(i) for source in sources)
            assert a.meta == b.meta and all(np.array_equal(x.ids, y.ids) for x, y in zip(a.parts, b.parts, strict=True))


@pytest.mark.parametrize("stop_at", ["fit", "save", "shard 2", "quality", "index"])
def test_it_goes_on_to_the_same_bytes_wherever_it_was_stopped(prepared, manifest, tmp_path, monkeypatch, stop_at):
    config = config_for(tmp_path, manifest)
    with monkeypatch.context() as patch:
        if stop_at == "fit":
            patch.setattr(stages._Preparation, "_train_codecs", stopped)
        elif stop_at == "save":
            patch.setattr(stages._Preparation, "_train_codecs", half_saved)
        elif stop_at == "shard 2":
            patch.setattr(Workers, "run", run_two_shards)
        elif stop_at == "quality":
            patch.setattr(stages._Preparation, "_measure_quality", stopped)
        else:
            patch.setattr(stages._Preparation, "_index", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    with pytest.raises(DataError, match="plait prepare"):
        read_index(tmp_path)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("*")} if stop_at != "fit" else {}
    prepare(config)
    assert files(tmp_path) == files(prepared[0])
    assert all(p.stat().st_mtime_ns == before for p, before in written.items())


KILLED_SCRIPT = """
import sys
if __name__ == "__main__":
    sys.path.insert(0, {tests!r})
    from helpers.fake_data import CODEC_NAMES
    from plait.codecs import CODECS
    CODECS.update(CODEC_NAMES)
    from helpers.prepared import config_for
    from plait.prepare.stages import prepare
    prepare(config_for({folder!r}, {manifest!r}, num_workers=2))
"""


@pytest.mark.recovery
@pytest.mark.parametrize(("how", "several"), [(signal.SIGKILL, False), (signal.SIGINT, False), (signal.SIGKILL, True)])
def test_killed_at_any_time_it_ends_with_the_same_bytes(prepared, manifest, tmp_path, how, several):
    script, folder, expected, sources = tmp_path / "run.py", tmp_path / "data", prepared[0], str(manifest)
    if several:
        from helpers.inputs import write_parquet, write_tar

        tars = [write_tar(tmp_path / f"{k}.tar", range(60 * k, 60 * k + 60)) for k in range(2)]
        sources = [str(path) for path in (*tars, write_parquet(tmp_path / "rows.parquet", range(150, 200)))]
        expected = tmp_path / "expected"
        prepare(config_for(expected, sources))
    values = {"tests": str(ROOT / "tests"), "folder": str(folder), "manifest": sources}
    script.write_text(KILLED_SCRIPT.format(**values))
    rng, kills, finished = np.random.default_rng(0), 0, False
    while kills < 10 or not finished:
        done = [folder / f"shards/{note.stem}.safetensors" for note in folder.glob("work/*-*.json")]
        done = {shard: shard.stat().st_mtime_ns for shard in done if shard.exists()}
        run = subprocess.Popen([sys.executable, script], start_new_session=True, stderr=subprocess.PIPE)
        try:
            run.communicate(timeout=float(rng.uniform(0.5, 2.5)) if kills < 10 else None)
        except subprocess.TimeoutExpired:
            kills += 1
            run.send_signal(how)
            run.communicate()
            assert {shard: shard.stat().st_mtime_ns for shard in done} == done  # what was finished is kept
            continue
        assert run.returncode == 0
        assert files(folder) == files(expected)
        finished = kills >= 10
        if not finished:
            shutil.rmtree(folder)


def run_two_shards(self, function, jobs, bar, check=None):
    if function is not encode_shard:
        return run_all(self, function, jobs, bar, check)
    run_all(self, function, jobs[:2], bar)
    raise KeyboardInterrupt


def stopped(*_, **__):
    raise KeyboardInterrupt


def half_saved(self, names):
    left = self.folder / "codecs" / ".image.1.tmp"  # what a killed worker leaves
    left.mkdir(parents=True)
    (left / "codec.json").write_text("{")
    raise KeyboardInterrupt


def test_finished_folders_are_recognised(prepared, manifest, monkeypatch):
    folder, report = prepared
    before = files(folder)
    monkeypatch.setattr(Workers, "run", stopped)
    assert prepare(config_for(folder, manifest)) == report["figures"]
    assert files(folder) == before


def test_other_settings_are_refused_by_name(prepared, manifest, tmp_path):
    folder, _ = prepared
    with pytest.raises(ConfigError, match=r"prepare.codec_documents: 64 differs from 100, .* --restart"):
        prepare(config_for(folder, manifest, codec_documents=64))
    with pytest.raises(ConfigError, match=r"model.modalities: \['text'\] differs from"):
        prepare(config_for(folder, manifest, names=("text",)))
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"data.path: .* is not empty"):
        prepare(config_for(tmp_path, manifest))


def test_a_refused_preparation_changes_nothing(prepared, manifest, tmp_path):
    """Neither the prepared folder nor the run's, whose config.yaml stays as it was."""
    folder, run = prepared[0], tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: mine\n")
    before = files(folder), {p.name: p.read_bytes() for p in run.iterdir()}
    for name, value in (("codec_documents", 64), ("shard_documents", 50), ("validation_share", 0.5)):
        config = config_for(folder, manifest, **{name: value})
        config.out = str(run)
        with pytest.raises(ConfigError, match=rf"^prepare\.{name}: {value} differs from "):
            prepare_step(config, QuietProgress())
        assert (files(folder), {p.name: p.read_bytes() for p in run.iterdir()}) == before
    (tmp_path / "mine/work").mkdir(parents=True)  # somebody else's folder, with a name that plait uses too
    with pytest.raises(ConfigError, match="was not begun by plait prepare"):
        prepare(config_for(tmp_path / "mine", manifest), restart=True)
    assert [p.name for p in (tmp_path / "mine").rglob("*")] == ["work"]


@pytest.mark.parametrize(("source", "name"), [("scenes", "passages"), ("scenes", "documents"), ("rows", "columns")])
def test_every_setting_that_the_data_follow_from_is_kept_with_them(manifest, tmp_path, source, name):
    source = manifest if source == "rows" else source
    config = config_for(tmp_path, source, ("text",))
    settings = prepared_settings(config, [] if source == "scenes" else [str(manifest)])
    claim_folder(tmp_path, settings, restart=False)
    check_folder(str(tmp_path), settings, restart=False)
    value = {"passages": 0.5, "documents": 7, "columns": {"caption": "text"}}[name]
    other = prepared_settings(
        config_for(tmp_path, source, ("text",), **{name: value}), [] if source == "scenes" else [str(manifest)]
    )
    with pytest.raises(ConfigError, match=rf"^prepare\.{name}: .* differs from .*--restart$"):
        check_folder(str(tmp_path), other, restart=False)
    check_folder(str(tmp_path), other, restart=True)


def test_a_restart_that_was_killed_leaves_no_folder_that_looks_whole(prepared, manifest, tmp_path, monkeypatch):
    shutil.copytree(prepared[0], tmp_path / "data")
    remove = shutil.rmtree

    def killed(path, *arguments, **named):
        remove(path, *arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("plait.prepare.claim.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config_for(tmp_path / "data", manifest), restart=True)
    with pytest.raises(DataError, match="plait prepare"):
        read_index(tmp_path / "data")
    with pytest.raises(ConfigError, match="--restart"):
        prepare(config_for(tmp_path / "data", manifest, codec_documents=3))


def test_restart_begins_anew(manifest, tmp_path):
    prepare(config_for(tmp_path, manifest, names=("text",), max_broken_share=1.0))
    config = config_for(tmp_path, manifest, names=("text",), shard_documents=50, max_broken_share=1.0)
    prepare(config, restart=True)
    assert len(read_index(tmp_path)["splits"]["train"]["shards"]) == 3


def test_parts_of_other_modalities_are_left_out_and_counted(prepared, manifest, tmp_path):
    report = prepare(config_for(tmp_path, manifest, names=("text",), max_broken_share=1.0))
    assert report["parts_left_out"] > 20
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "broken.jsonl").read_text().splitlines()]
    assert any(r.startswith("none of its parts (") for r in reasons)


def test_codecs_of_another_folder(prepared, manifest, tmp_path):
    other = prepared[0]
    prepare(config_for(tmp_path, manifest, codecs_from=str(other)))
    assert read_index(tmp_path)["modalities"] == read_index(other)["modalities"]
    config = config_for(tmp_path, manifest)
    config.data.sources = {str(tmp_path): 1.0, str(other): 1.0}
    next(iter(Loader(config)))
    with pytest.raises(ConfigError, match=r"prepare.codecs_from"):
        prepare(config_for(tmp_path / "new", manifest, codecs_from=str(tmp_path / "gone")))


def test_too_many_broken_rows(manifest, tmp_path):
    config = config_for(tmp_path, manifest, max_broken_share=0.01)
    with pytest.raises(DataError, match=r"3 of 150 rows \(2.0%\) are broken.*allows 1.0%; line 21: .*broken.jsonl'$"):
        prepare(config)
    assert len((tmp_path / "broken.jsonl").read_text().splitlines()) == 3
    config.prepare.max_broken_share = 0.05
    assert prepare(config)["broken_rows"] == 3  # the shards are there already


def test_all_rows_broken(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"parts": [{"image": "gone.png"}]}\n' * 10)
    with pytest.raises(DataError, match=r"at least 10 of 10 rows .* line 1: part 1 \(image\): there is no file"):
        prepare(config_for(tmp_path / "data", tmp_path / "rows.jsonl", validation_share=0.0))


def test_a_key_that_no_row_has(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"parts": [{"text": "a"}]}\n' * 10)
    with pytest.raises(DataError, match=r"has no 'image' part .* add some or take 'image' out"):
        prepare(config_for(tmp_path / "data", tmp_path / "rows.jsonl", validation_share=0.0))


def test_results_are_checked_before_slower_jobs_end(manifest, tmp_path):
    """So that nobody waits for one codec's minutes to hear that another has nothing to be made from."""
    checked = []

    def check(job, result):
        checked.append(job)
        raise DataError("nothing there")

    setup = Setup(
        tmp_path, config_for(tmp_path, manifest, num_workers=2).prepare, 0, {"text": ModalitySettings("fake_text")}
    )
    with pytest.raises(DataError, match="nothing there"), Workers(setup) as workers:
        workers.run(time.sleep, [(0.0,), (3.0,)], Bar("", 1), check)
    assert checked == [(0.0,)]


def test_a_vocabulary_that_is_too_small(manifest, tmp_path):
    config = config_for(tmp_path, manifest)
    config.model = with_modality(config.model, "image", vocab_size=63)
    with pytest.raises(ConfigError, match=r"model.modalities.image.vocab_size: 63 .* at least 64"):
        prepare(config)


def test_two_modalities_with_one_key(manifest, tmp_path):
    config = config_for(tmp_path, manifest)
    config.modalities["speech"].codec = "fake_image"
    with pytest.raises(ConfigError, match=r"model.modalities.speech.codec: .* model.modalities.image reads already"):
        prepare(config)


def test_a_run_of_another_seed_reads_the_scenes_of_its_data(tmp_path):
    config = config_for(tmp_path / "data", "scenes", ("text", "image"), documents=24, validation_documents=4)
    prepare(config)
    documents = ShardSource(tmp_path / "data", "seen")
    other = stages.raw_source(dataclasses.replace(config, seed=1)).read("seen", 0, 4)
    assert [document.meta for document in other] == [documents.meta(i) for i in range(4)]


def test_scenes_lack_other_keys(tmp_path):
    config = config_for(tmp_path, "scenes", names=("text", "depth"))
    with pytest.raises(ConfigError, match="the scenes have text, image, audio"):
        prepare(config)


def test_a_full_disk_names_the_path(manifest, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("plait.common.files.os.fsync", full)
    with pytest.raises(ResourceError, match=r"no space is left to write .*settings.json"):
        prepare(config_for(tmp_path, manifest))
    assert not list(tmp_path.iterdir())


def test_continuous_parts(tmp_path):
    rows = [{"parts": [{"text": f"{i}"}, {"depth": [i, 1.5]}]} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(tmp_path / "data", tmp_path / "rows.jsonl", names=("text", "depth"))
    prepare(config)
    document = ShardSource(tmp_path / "data", "train").document(0)
    i = int(bytes(document.parts[0].ids.astype(np.uint8)))
    np.testing.assert_array_equal(document.parts[1].latents, np.resize(np.array([i, 1.5], np.float32), (4, 3)))
    assert document.parts[1].grid == (2, 2)


@pytest.mark.parametrize(("rows", "wanted"), [(1, 1), (63, 5), (64, 64), (1000, 100), (1000, 5000)])
def test_blocks_are_spread_and_do_not_overlap(rows, wanted):
    jobs = spread_blocks("train", rows, wanted)
    covered = [i for _, start, stop in jobs for i in range(start, stop)]
    assert len(covered) == len(set(covered)) and max(covered) < rows
    assert min(wanted, rows) - 64 < len(covered) <= max(wanted + 63, 1) and min(covered) == 0


def test_with_the_real_codecs(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 30 + i, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, 6000 + 500 * i), 8000)
    rows = [
        {"parts": [{"audio": f"{i}.wav"}, {"text": f"žluťoučký kůň {i}"}, {"image": f"{i}.png"}]} for i in range(12)
    ]
    rows += [{"parts": [{"image": "0.wav"}]}, {"parts": [{"audio": "0.png"}]}, {"parts": [{"text": 5}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(tmp_path / "data", tmp_path / "rows.jsonl", codec_minutes=0.005, max_broken_share=0.2)
    for name, codec in {"text": "text_bpe", "image": "image_tokens", "speech": "speech_tokens"}.items():
        config.modalities[name].codec = codec
    config.data.batch_tokens = 1024
    figures = prepare(config)
    assert figures["broken_rows"] == 3 and figures["image_codec_psnr"] > 0
    batch, _ = next(iter(Loader(config)))
    assert {p.modality for d in batch.documents for p in d.parts} == {"text", "image", "speech"}


@pytest.fixture(scope="module")
def given(tmp_path_factory, manifest) -> RunConfig:
    """Return a run on rows whose images carry no loss, and whose meta has a caption, as img2dataset writes one."""
    rows = [{"parts": [{"image": "0.png", "loss": False}, {"text": f"about {i}", "loss": True}],
             "meta": {"caption": "a fox"}} for i in range(40)]  # fmt: skip
    rows.append({"parts": [{"text": "a", "loss": "no"}]})
    path = manifest.with_name("given.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path_factory.mktemp("given")
    config = config_for(folder / "data", path, ("text", "image"), max_broken_share=0.1)
    with pytest.MonkeyPatch.context() as patch:
        for name, place in CODEC_NAMES.items():
            patch.setitem(CODECS, name, place)
        prepare(config)
    return config


def test_parts_without_loss_stay_so_all_the_way(given):
    """``loss: false`` in a manifest is understanding in training: seen clean, and never a target."""
    folder = Path(given.data.path)
    broken = json.loads((folder / "broken.jsonl").read_text())["reason"]
    assert broken == 'part 1 has the loss "no", it must be true or false'
    document = ShardSource(folder, "train").document(0)
    assert [(p.role, p.loss) for p in document.parts] == [("understanding", 0.0), ("generation", 1.0)]
    batch, _ = next(iter(Loader(given)))
    names = list(given.model.modalities)
    assert batch.counts[names.index("image")] == 0 < batch.counts[names.index("text")]
