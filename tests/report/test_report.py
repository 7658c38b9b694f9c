"""The report shows whatever a run has, is safe with what users wrote, and is whole in a real browser."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.report_files import CAPTIONS, HOSTILE, text, write_clip, write_image, write_jsonl

from plait.common.errors import DataError, ResourceError
from plait.report import numbers as numbers_module
from plait.report import write_report
from plait.report.run_charts import MOST_POINTS, run_charts
from plait.report.scores import scores
from plait.scenes.drawings import CREDIT


def make_samples(folder: Path):
    records, codecs = [], []
    for i in range(18):
        kind = i % 6
        files = {name: f"images/{name}{i:02}.png" for name in ("made", "true", "round")}
        clips = {name: f"audio/{name}{i:02}.wav" for name in ("made", "true", "round")}
        for name, noise in (("made", 14.0), ("true", 0.0), ("round", 5.0)):
            write_image(folder / files[name], kind, noise)
            if i < 6:
                write_clip(folder / clips[name], kind, noise / 400)
        image = {name: {"modality": "image", "file": file} for name, file in files.items()}
        clip = {name: {"modality": "speech", "file": file} for name, file in clips.items()}
        caption = text(CAPTIONS[kind])
        drawing = {"image": {"temperature": 0.9, "guidance": 3.0}}
        records.append({"id": f"p{i}", "task": "text>image", "prompt": [caption], "output": [image["made"]],
                        "truth": [image["true"]], "sampling": drawing, "seed": i})  # fmt: skip
        if i >= 6:
            continue
        said = CAPTIONS[kind] if i % 3 else CAPTIONS[kind].replace("a ", "a tiny ", 1).replace("fox", "dog")
        records += [
            {"id": f"c{i}", "task": "image>text", "prompt": [image["true"]], "output": [text(said)],
             "truth": [caption], "correct": {"object": "dog" not in said, "relation": i != 3}, "seed": i},
            {"id": f"s{i}", "task": "text>speech", "prompt": [caption], "output": [clip["made"]],
             "truth": [clip["true"]], "sampling": {"temperature": 0.8}, "seed": i},
            {"id": f"h{i}", "task": "speech>text", "prompt": [clip["true"]], "output": [text(said)],
             "truth": [caption], "seed": i},
        ]  # fmt: skip
        if i < 3:
            parts = [text(CAPTIONS[i]), image["made"], clip["made"], text("and " + CAPTIONS[i + 1])]
            records.append({"id": f"f{i}", "task": "free", "prompt": [text("look:")], "output": parts, "seed": i})
        codecs.append({"modality": "image", "original": image["true"], "reconstruction": image["round"]})
        codecs.append({"modality": "speech", "original": clip["true"], "reconstruction": clip["round"]})
    write_jsonl(folder / "samples.jsonl", records)
    write_jsonl(folder / "codecs.jsonl", codecs)


def make_metrics(path: Path):
    rng = np.random.default_rng(0)
    rows = []
    for step in range(0, 1001, 10):
        row = {"step": step, "seconds": step * 0.31, "tokens": step * 4096}
        row |= {"learning_rate": 1e-3 * min(1, step / 100) * (0.5 + 0.5 * math.cos(math.pi * step / 1000)),
                "grad_norm": 0.4 + 4 * math.exp(-step / 60) + 0.08 * rng.random(),
                "tokens_per_second": 13000 + 400 * rng.normal(), "memory_gb": 1.4 + 0.4 * min(1, step / 80),
                "loader_share": 0.008 + 0.004 * rng.random(), "skipped_steps": 0}  # fmt: skip
        for i, (name, start, end) in enumerate((("text", 7.6, 1.4), ("image", 6.9, 4.3), ("speech", 6.9, 3.1))):
            loss = end + (start - end) * math.exp(-step / (90 + 60 * i))
            row[f"loss/{name}"] = loss + 0.12 * rng.normal()
            if step % 100 == 0:
                for split, gap in (("seen", 0.02), ("unseen_concepts", 0.45), ("unseen_pairs", 0.16)):
                    row[f"val_loss/{split}/{name}"] = loss + gap * step / 1000
        rows.append(row)
    rows[50]["grad_norm"] = None
    write_jsonl(path, rows)


SUMMARY = {
    "seconds_total": 823.4, "peak_memory_gb": 3.42, "tokens_per_second": 13120.0, "packing_efficiency": 0.983,
    "parameters": 9_437_184, "val_loss/text": 1.52, "val_loss/image": 4.41, "val_loss/speech": 3.24,
    "perplexity/text": 4.57, "perplexity/image": 82.3, "perplexity/speech": 25.5,
    "caption_object_accuracy": 0.063, "caption_object_chance": 0.00052, "caption_choice_accuracy": 0.182,
    "caption_choice_shuffled": 0.006, "caption_colour_accuracy": 0.71, "caption_colour_chance": 0.125,
    "caption_relation_accuracy": 0.44, "caption_relation_chance": 0.25, "image_codec_psnr": 22.4,
    "image_codec_psnr_thumbnail": 18.8, "image_codec_codes_used": 986, "speech_codec_recognised": 0.93,
    "speech_codec_mel_l1": 0.231, "commit": "768336d0c1f2", "hardware": "2 cores, AMD EPYC, 6 GB",
    "versions": "python 3.11.2, torch 2.13.0, plait 0.1.0",
}  # fmt: skip
CONFIG = """name: quickstart
seed: 7
model:
  width: 128
  modalities:
    text: {codec: text_bpe}
    image: {codec: image_tokens}
    speech: {codec: speech_tokens}
"""


def make_run(folder: Path) -> Path:
    """Make the folder of a finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    losses = {}
    for split, gap in (("seen", 0.0), ("unseen_concepts", 0.42), ("unseen_pairs", 0.15)):
        tasks = {"text>image": 4.3, "image>text": 1.3, "text>speech": 3.1, "speech>text": 0.9, "speech>image": 4.4}
        for task, loss in tasks.items():
            losses[f"task_loss/{split}/{task}/{task.split('>')[1]}"] = loss + gap
        for name, loss in (("text", 1.4), ("image", 4.35), ("speech", 3.15)):
            losses[f"val_loss/{split}/{name}"] = loss + gap
    (folder / "summary.json").write_text(json.dumps(SUMMARY | losses))
    (folder / "data").mkdir(exist_ok=True)
    report = {"credit": CREDIT, "documents": 16000, "broken": [], "quality": {"image": {"judge_top1": 0.74}}}
    (folder / "data" / "report.json").write_text(json.dumps(report))
    make_metrics(folder / "metrics.jsonl")
    make_samples(folder / "samples")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "quickstart")
    write_report(folder)
    return folder


MEDIA = """Promise.all([...document.querySelectorAll("audio")].map(a => a.readyState >= 1 ? 1 :
  new Promise(done => { a.onloadedmetadata = a.onerror = done; setTimeout(done, 8000); }))).then(() => ({
    images: [...document.images].map(i => i.naturalWidth),
    clips: [...document.querySelectorAll("audio")].map(a => a.readyState),
    curves: [...document.querySelectorAll(".plot")].filter(p => p.checkVisibility())
      .map(p => p.querySelectorAll(".line").length),
    wider: document.documentElement.scrollWidth - innerWidth}))"""


@pytest.mark.parametrize("width", [1280, 420])
def test_everything_loads_in_a_browser_with_nothing_in_the_console(run, browser, width):
    browser.open(run / "report.html", width)
    seen = browser.run(MEDIA)
    assert len(seen["images"]) == 36 + 6 + 3 + 12 + 10 and min(seen["images"]) == 32
    assert len(seen["clips"]) == 12 + 6 + 3 + 12 + 2 and min(seen["clips"]) >= 1
    assert len(seen["curves"]) == 8 and min(seen["curves"]) >= 1
    assert seen["wider"] <= 0, "the page must not scroll sideways"
    assert browser.problems() == []


def test_values_show_on_hover_and_the_axis_can_be_changed(run, browser):
    browser.open(run / "report.html")
    place = browser.run("""(() => { const p = document.querySelector('#loss_curves .plot');
        p.scrollIntoView({block: "center", behavior: "instant"});
        const b = p.getBoundingClientRect(); return [b.left + b.width / 2, b.top + 50]; })()""")

    def read(across: float = 0) -> str:
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0] + across, y=place[1])
        return browser.run("document.querySelector('#loss_curves .tip').innerText").replace("\n", " ")

    middle = read()
    assert middle.startswith("training step ") and "unseen concepts" in middle and "training " in middle
    assert read(40) != middle
    browser.run("document.querySelector('input[value=seconds]').click()")
    assert "min" in read().partition("training")[0] and read().startswith("time ")
    labels = "[...document.querySelectorAll('#loss_curves .plot text')].map(t => t.textContent).join(' ')"
    linear = browser.run(labels)
    browser.run("document.querySelector('input[value=log]').click()")
    assert browser.run(labels) != linear and "time" in linear
    assert browser.problems() == []


def test_a_clip_plays_and_only_one_at_a_time(run, browser):
    browser.open(run / "report.html")
    state = browser.run("""(async () => { const b = document.querySelectorAll('.player button'); b[0].click();
        await new Promise(d => setTimeout(d, 200)); b[1].click(); await new Promise(d => setTimeout(d, 200));
        return [...document.querySelectorAll('audio')].map(a => !a.paused).slice(0, 2); })()""")
    assert state == [False, True]
    assert browser.problems() == []


def hostile_run(folder: Path) -> Path:
    """Make a run in which every text that a user can choose tries to break out of its place."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"name": HOSTILE, "seed": HOSTILE}))
    (folder / "summary.json").write_text(json.dumps({"commit": HOSTILE, HOSTILE: 1.0, f"val_loss/{HOSTILE}/x": 2}))
    rows = [{"step": i, "seconds": i, "tokens": i, f"loss/{HOSTILE}": 1.0, HOSTILE: 2.0} for i in range(3)]
    write_jsonl(folder / "metrics.jsonl", rows)
    outside = {"modality": "image", "file": "../../secret.png"}
    absent = {"modality": HOSTILE + "\ud800", "file": HOSTILE + ".png"}
    (folder / "samples" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (folder / "samples" / "torn.wav").write_bytes(b"RIFF")
    torn = [{"modality": "image", "file": "torn.png"}, {"modality": "speech", "file": "torn.wav"}]
    base = {"task": HOSTILE, "prompt": [text(HOSTILE)], "sampling": {HOSTILE: 1}, "seed": HOSTILE, "id": HOSTILE}
    records = [
        base
        | {"output": [text("lone \ud800 and \x00 " + HOSTILE)], "truth": [text(HOSTILE)], "correct": {HOSTILE: True}}
    ]
    records += [base | {"task": "image", "output": [part]} for part in (outside, absent, *torn, {}, "no part")]
    write_jsonl(folder / "samples" / "samples.jsonl", records)
    write_jsonl(folder / "samples" / "codecs.jsonl", [{"modality": HOSTILE, "original": text(HOSTILE)}])
    write_image(folder.parent / "secret.png", 0, 0)
    return folder


def test_what_users_wrote_is_shown_and_never_run(tmp_path, browser):
    browser.open(write_report(hostile_run(tmp_path / "run")))
    assert browser.problems() == []
    seen = browser.run("""({scripts: document.scripts.length, title: document.querySelector('h1').textContent,
        images: document.images.length, panels: document.querySelectorAll('.panel').length})""")
    assert seen == {"scripts": 3, "title": HOSTILE, "images": 0, "panels": 2}


def test_what_users_wrote_is_escaped_and_files_outside_are_not_read(tmp_path):
    page = write_report(hostile_run(tmp_path / "run")).read_text("utf-8")
    assert "<script>console" not in page and "<img src=x" not in page
    assert "it lies outside the samples" in page
    assert "the file is not there" in page
    assert "it cannot be read as an image" in page and "it cannot be read as sound" in page


PIECES = ["config.yaml", "summary.json", "metrics.jsonl", "samples/samples.jsonl", "samples/codecs.jsonl"]


@pytest.mark.parametrize("piece", PIECES)
def test_one_piece_alone_makes_a_page(run, tmp_path, browser, piece):
    (tmp_path / piece).parent.mkdir(exist_ok=True)
    shutil.copy(run / piece, tmp_path / piece)
    browser.open(write_report(tmp_path))
    assert browser.problems() == []
    assert browser.run("document.querySelectorAll('section').length") >= 1


@pytest.mark.parametrize("piece", [*PIECES, "data", "samples/images", "samples/audio"])
def test_any_one_piece_may_be_missing(run, tmp_path, piece):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / piece) if (folder / piece).is_dir() else (folder / piece).unlink()
    assert "</html>" in write_report(folder).read_text("utf-8")


def test_a_torn_last_line_is_no_error_and_a_broken_file_is_named(tmp_path):
    make_metrics(tmp_path / "metrics.jsonl")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1010, "loss/te')
    assert "1,000 steps" in write_report(tmp_path).read_text("utf-8")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json' is not a JSON file"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="is no run's folder"):
        write_report(tmp_path / "elsewhere")


def test_unknown_modalities_and_figures_are_shown_too(tmp_path):
    summary = {"depth_codec_rmse": 0.25, "perplexity/depth": 3.0, "answer": 42, "val_loss/seen/depth": 1.1}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "seconds": 1, "tokens": 1, "loss/depth": 2.0, "extra": 1}])
    page = write_report(tmp_path).read_text("utf-8")
    for piece in ("depth", "rmse", "answer", "42", '"title": "extra"', "1.100"):
        assert piece in page


@pytest.mark.parametrize("package", ["PIL", "soundfile"])
def test_a_missing_package_is_named(run, monkeypatch, package):
    for name in [m for m in sys.modules if m == package or m.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ResourceError, match=rf"'{package}.*pip install plait\[media\]"):
        write_report(run)


def test_the_credit_stands_where_scenes_were_used(run, tmp_path):
    page = (run / "report.html").read_text("utf-8")
    assert '<a href="https://creativecommons.org/licenses/by-sa/4.0/"' in page and "shared alike" in page
    (tmp_path / "config.yaml").write_text("prepare: {source: my/manifest.jsonl}")
    assert "OpenMoji" not in write_report(tmp_path).read_text("utf-8")


def test_long_runs_are_averaged_down_and_gaps_stay_gaps():
    rows = [{"step": i, "seconds": i, "tokens": i, "loss/a": 1.0} for i in range(10_000)]
    series = run_charts(rows, ["a"])["loss"].panels[0].series[0]
    assert len(series.y) <= MOST_POINTS and set(series.y) == {1.0} and len(series.along["seconds"]) == len(series.y)
    rows = [{"step": i, "seconds": i, "tokens": i, "grad_norm": None if i == 1 else 2.0} for i in range(3)]
    assert run_charts(rows, [])["optimizer"].panels[0].series[0].y == pytest.approx([2.0, math.nan, 2.0], nan_ok=True)


NAMES = ["text", "image", "speech"]
MEASURED = {
    "image_object_accuracy": 0.52, "image_object_chance": 0.0025, "image_object_codec": 0.88,
    "image_object_accuracy_count": 300.0, "image_object_nearest": 0.9,
    "image_ground_accuracy": 0.97, "image_ground_chance": 0.1, "image_ground_codec": 1.0,
    "image_frechet": 310.4, "image_frechet_codec": 120.2, "image_frechet_blurred": 330.0, "image_frechet_count": 500.0,
    "speech_recognised": 0.8, "speech_recognised_count": 240.0, "speech_codec_recognised": 0.9,
    "speech_codec_recognised_originals": 0.95, "caption_speech_object_accuracy": 0.91,
    "caption_speech_object_chance": 1 / 64,
}  # fmt: skip


def test_scores_stand_beside_chance_and_ceiling():
    rows = scores(SUMMARY | MEASURED, NAMES, {"image_object_accuracy": 0.6, "image_ground_accuracy": 0.95})
    found = {(*r.path, r.label.split(",")[0]): r for r in rows}
    named = found["text", "image", "shows the right thing"]
    assert (named.value, named.chance, named.ceiling) == ("52.0%", "0.25%", "88.0%")
    assert named.aside == "of 300, nearest training items 90.0%, short of the 60.0% aimed at"
    assert named.bar == (0.52, 0.0025, 0.88)
    assert found["text", "image", "right background"].aside == ""
    distance = found["text", "image", "Fréchet distance to real images"]
    assert (distance.value, distance.ceiling, distance.bar) == ("310", "120", None)
    assert distance.aside == "of 500, blurred images 330"
    heard = found["text", "speech", "understood by a recogniser"]
    assert (heard.value, heard.ceiling, heard.aside) == ("80.0%", "85.5%", "of 240, originals 95.0%")
    assert found["image", "text", "names the right thing"].value == "6.3%"
    assert found["image", "text", "names the right thing"].ceiling == "100.0%"
    (unjudged,) = scores({"speech_recognised": 0.8}, NAMES, {})
    assert unjudged.ceiling == ""  # what the codec reaches was not measured
    assert found["speech", "text", "names the right thing"].value == "91.0%"
    assert ("speech", "text", "right background") not in found


def test_scores_of_any_modality_are_found_by_its_name():
    """Also of one whose name begins like a figure's own."""
    numbers = {"captions_object_accuracy": 0.3, "captions_frechet": 9.0, "caption_depth_object_accuracy": 0.4}
    rows = [(*r.path, r.value) for r in scores(numbers, ["text", "captions", "depth"], {})]
    assert rows == [("text", "captions", "30.0%"), ("text", "captions", "9"), ("depth", "text", "40.0%")]
    assert scores({}, [], {}) == [] and scores({"answer": 1.0}, ["text"], {}) == []


def test_scores_of_traffic():
    numbers = {"traffic_event_accuracy": 0.6, "traffic_event_shuffled": 0.05, "traffic_event_nearest": 0.9,
               "traffic_lane_accuracy": 0.97, "traffic_lane_chance": 0.25, "traffic_no_collision": 0.9,
               "traffic_no_collision_real": 1.0, "traffic_no_collision_codec": 0.99, "traffic_idm_crash_rate": 0.04,
               "traffic_idm_crash_rate_low": 0.01, "traffic_idm_crash_rate_high": 0.1, "traffic_idle_speed": 18.44,
               "traffic_idle_speed_real": 18.1, "caption_lane_accuracy": 0.9, "caption_lane_chance": 0.25,
               "caption_event_accuracy": 0.5}  # fmt: skip
    rows = {(*r.path, r.label): r for r in scores(numbers, ["text", "traffic", "actions"], {})}
    event = rows["text", "traffic", "what happens is what the caption says"]
    assert (event.value, event.aside) == ("60.0%", "nearest training items 90.0%, another document’s 5.0%")
    assert rows["text", "traffic", "ego is in the lane that the caption says"].chance == "25.0%"
    whole = rows["text", "traffic", "no vehicles collide in a simulation"]
    assert (whole.ceiling, whole.aside, whole.bar) == ("99.0%", "real ones 100.0%", (0.9, 0.0, 0.99))
    crashes = rows["text", "traffic", "highway-env’s own driver (IDM and MOBIL) crashes in it"]
    assert (crashes.value, crashes.aside, crashes.bar) == ("4.0%", "1.0% to 10.0%", None)
    speed = rows["text", "traffic", "mean speed of a driver that keeps lane and speed in it, m/s"]
    assert (speed.value, speed.aside) == ("18.4", "real ones 18.1")
    assert rows["traffic", "text", "says in which lane ego is"].chance == "25.0%" and len(rows) == 7


def test_scores_of_scenes_and_motions():
    numbers = {"scene3d_object_accuracy": 0.4, "scene3d_object_chance": 0.01, "scene3d_object_codec": 0.95,
               "scene3d_colour_accuracy": 0.9, "caption_scene3d_colour_accuracy": 0.8, "scene3d_stands": 0.97,
               "scene3d_stands_real": 0.96, "scene3d_one_nna_chamfer": 0.7, "scene3d_one_nna_chamfer_training": 0.52,
               "motion_event_accuracy": 0.75, "motion_event_chance": 1 / 19, "motion_event_shuffled": 0.2,
               "motion_error": 0.0294, "motion_error_still": 0.142, "motion_error_constant": 0.276,
               "motion_error_second": 0.05, "motion_error_second_still": 0.2}  # fmt: skip
    modalities = ["text", "view", "scene3d", "motion"]
    rows = {(*r.path, r.label.partition(",")[0]): r for r in scores(numbers, modalities, {})}
    assert rows["text", "scene3d", "shows the right thing"].bar == (0.4, 0.01, 0.95)
    assert rows["text", "scene3d", "right colour"].value == "90.0%"
    assert rows["scene3d", "text", "says the right colour"].value == "80.0%"
    assert rows["text", "scene3d", "stands in a simulation"].aside == "real ones 96.0%"
    told = next(r for r in rows.values() if r.label.startswith("told from real scenes"))
    assert (told.value, told.aside, told.bar) == ("70.0%", "training scenes 52.0%", None)
    assert rows["text", "motion", "what happens is what the caption says"].aside == "another document’s 20.0%"
    errors = [r for r in rows.values() if r.label.startswith("distance ") and "own" in r.label]
    assert [r.value for r in errors] == ["0.029", "0.050"]
    assert errors[0].aside == "all stays as at first 0.142, first velocity kept 0.276"


def test_texts_of_anybodys_data_have_rows_of_their_own():
    numbers = {"caption_bleu": 84.28, "caption_bleu_low": 79.1, "caption_bleu_high": 89.49, "caption_bleu_count": 94.0,
               "caption_exact": 0.713, "caption_exact_low": 0.6, "caption_exact_high": 0.8, "caption_exact_count": 94.0,
               "caption_in_training": 0.287, "caption_in_training_real": 0.266, "caption_speech_bleu": 30.0,
               "caption_speech_wer": 0.378, "caption_speech_wer_low": 0.34, "caption_speech_wer_high": 0.41,
               "caption_speech_wer_count": 94.0, "image_frechet": 709.02, "image_frechet_count": 60.0}  # fmt: skip
    rows = {(*r.path, r.label.partition(",")[0]): r for r in scores(numbers, ["text", "image", "speech"], {})}
    assert rows["image", "text", "BLEU"].value == "84.3"
    assert rows["image", "text", "BLEU"].aside == "79.1 to 89.5, of 94"
    exact = rows["image", "text", "text is the document’s own"]
    assert (exact.value, exact.ceiling, exact.aside) == ("71.3%", "100.0%", "60.0% to 80.0%, of 94")
    remembered = rows["image", "text", "is a training text to the letter"]
    assert (remembered.value, remembered.aside) == ("28.7%", "the documents’ own 26.6%")
    assert rows["speech", "text", "word error rate"].value == "37.8%"
    assert rows["text", "image", "Fréchet distance to real images"].value == "709"


def test_the_first_screen_shows_what_was_made(run, browser):
    browser.open(run / "report.html", 1400)
    seen = browser.run("""(() => { const made = document.querySelector("#made"); return {
        images: made.querySelectorAll(".gallery img").length, said: made.querySelectorAll(".told").length,
        clips: made.querySelectorAll(".spoken audio").length, top: made.getBoundingClientRect().top,
        first: document.querySelector("main > *").id,
        table: document.querySelectorAll("#scores tbody tr").length}; })()""")
    assert (seen["images"], seen["said"], seen["clips"], seen["first"]) == (8, 2, 2, "made")
    assert seen["top"] < 400 and seen["table"] == 3


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.21, "3.2 s"), (59.7, "1 min 0 s"), (582, "9 min 42 s"), (7384, "2 h 3 min")]
)
def test_durations_read_well(seconds, words):
    assert numbers_module.duration(seconds) == words
