"""The report of a run with diffusion: strips, guided samples, figures of generated images, units of losses."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("soundfile")

from helpers.report_files import CAPTIONS, HOSTILE, text, write_clip, write_image, write_jsonl  # noqa: E402

from plait.report import numbers, write_report  # noqa: E402
from plait.report import strips as strips_module  # noqa: E402
from plait.report.media import Media  # noqa: E402

LEVELS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.05)
SCALES = (1.0, 2.0, 3.0, 5.0)
SAMPLING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 3.0, "media_guidance": 1.0, "steps": 50,
            "sampler": "auto"}  # fmt: skip
FIGURES = {
    "image_object_accuracy": 0.05, "image_object_chance": 0.0025, "image_object_accuracy_low": 0.031,
    "image_object_accuracy_high": 0.077, "image_object_originals": 0.71, "image_object_codec": 0.55,
    "image_object_accuracy_count": 410.0, "image_frechet": 41.5, "image_frechet_blurred": 85.25,
    "image_frechet_real": 5.5,
    "image_frechet_codec": 12.5, "image_frechet_count": 1000.0, "caption_object_accuracy": 0.3,
    "caption_object_chance": 0.0005, "val_loss/text": 1.5, "perplexity/text": 4.48, "val_loss/image": 0.25,
    "image_codec_psnr": 23.1, "image_codec_psnr_thumbnail": 20.6, "image_codec_latent_mean": -0.0125,
    "image_codec_latent_std": 1.0042,
    "task_loss/seen/image>text/text": 1.5, "task_loss/seen/text>image/image": 0.25,
}  # fmt: skip
CONFIG = """name: transfusion
diffusion: {process: flow}
model:
  modalities:
    text: {codec: text_bpe}
    image: {codec: image_latents, objective: diffusion, attention: bidirectional}
"""


def image(file: str) -> dict:
    return {"modality": "image", "file": file}


def speech(file: str) -> dict:
    return {"modality": "speech", "file": file}


def noised(folder: Path, level: float, name: str) -> dict:
    """Write a scene with noise of a level between 0 and 1, 64 px."""
    write_image(folder / name, 1, 0.0)
    pixels = np.asarray(Image.open(folder / name), np.float32).repeat(2, 0).repeat(2, 1)
    noise = np.random.default_rng(int(100 * level)).normal(128, 60, pixels.shape)
    Image.fromarray(((1 - level) * pixels + level * noise).clip(0, 255).astype(np.uint8)).save(folder / name)
    return image(name)


def make_samples(folder: Path, *, count: int = 8):
    """Write ``count`` strips and guided prompts of images, and one of each of clips."""
    strips, guided = [], []
    for i in range(count):
        truth = noised(folder, 0.0, f"image/true-{i}.png")
        steps = [{"level": t, "part": noised(folder, t, f"image/strip-{i}-{t}.png")} for t in LEVELS]
        output = noised(folder, 0.02, f"image/made-{i}.png")
        prompt = [text(CAPTIONS[i % len(CAPTIONS)])]
        steps.append({"level": 0.0, "part": output})
        base = {"prompt": prompt, "truth": [truth], "sampling": {"image": SAMPLING}}
        strips.append(base | {"steps": steps, "output": output})
        outputs = [{"guidance": g, "part": noised(folder, 0.3 / g, f"image/guided-{i}-{g}.png")} for g in SCALES]
        guided.append(base | {"outputs": outputs})
    for name, noise in (("true", 0.0), ("made", 0.05), ("noise", 1.0)):
        write_clip(folder / f"audio/{name}.wav", 1, noise)
    said = {"prompt": [text(CAPTIONS[0])], "truth": [speech("audio/true.wav")]}
    steps = [{"level": t, "part": speech("audio/noise.wav")} for t in LEVELS]
    strips.append(said | {"steps": steps, "output": speech("audio/made.wav")})
    guided.append(said | {"outputs": [{"guidance": g, "part": speech("audio/made.wav")} for g in SCALES]})
    write_jsonl(folder / "strips.jsonl", strips)
    write_jsonl(folder / "guidance.jsonl", guided)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "transfusion"
    make_samples(folder / "samples")
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "summary.json").write_text(json.dumps(FIGURES))
    write_jsonl(folder / "metrics.jsonl", [{"step": i, "loss/text": 2.0, "loss/image": 0.5} for i in range(3)])
    write_report(folder)
    return folder


SEEN = """Promise.all([...document.querySelectorAll("audio")].map(a => a.readyState >= 1 ? 1 :
  new Promise(done => { a.onloadedmetadata = a.onerror = done; setTimeout(done, 8000); }))).then(() => {
    document.querySelectorAll("details").forEach(d => d.open = true);
    const box = (e) => e.getBoundingClientRect();
    const inside = (e, o) => box(e).left >= box(o).left - 1 && box(e).right <= box(o).right + 1;
    const row = document.querySelector(".steps"), images = [...row.querySelectorAll("img")];
    return {
      strips: document.querySelectorAll("#denoising .strip").length,
      labels: [...row.querySelectorAll("figcaption")].map(c => c.textContent),
      widths: images.map(i => i.naturalWidth),
      order: images.map(i => box(i).left),
      end: inside(images.at(-1), row.parentElement),
      start: inside(images[0], row.parentElement),
      clips: [...document.querySelectorAll("#denoising audio")].map(a => a.readyState),
      waves: document.querySelectorAll("#denoising .still").length,
      heads: [...document.querySelectorAll(".guided thead")[0].querySelectorAll("th")].map(t => t.textContent),
      cells: [...document.querySelectorAll(".guided td")].map(t => inside(t.querySelector("img"), t)),
      guided: [...document.querySelectorAll("#guidance .clips figcaption")].map(c => c.textContent),
      wider: document.documentElement.scrollWidth - innerWidth}; })"""


@pytest.mark.parametrize("width", [1300, 390])
def test_strips_and_scales_show_whole_at_every_width(run, browser, width):
    browser.open(run / "report.html", width)
    seen = browser.run(SEEN)
    assert seen["strips"] == 9
    assert seen["labels"] == ["1", "0.8", "0.6", "0.4", "0.2", "0.05", "0", "true"]
    assert seen["widths"] == [64] * 8 and seen["order"] == sorted(seen["order"])
    gaps = [b - a for a, b in itertools.pairwise(seen["order"])]
    assert gaps[-1] > gaps[0] + 10, "the truth stands apart"
    assert seen["end"] and seen["start"] is (width > 1000), "too wide a row shows its end and scrolls to its start"
    assert len(seen["clips"]) == 2 and min(seen["clips"]) >= 1 and seen["waves"] == len(LEVELS)
    assert seen["heads"] == ["Prompt", "1", "2", "3", "5", "true"]
    assert len(seen["cells"]) == 8 * 5 and all(seen["cells"]), "an image reaches out of its cell"
    assert seen["guided"] == ["scale 1", "scale 2", "scale 3", "scale 5", "true"]
    assert seen["wider"] <= 0, "the page must not scroll sideways"
    assert browser.problems() == []


def test_only_settings_that_count_are_said(run):
    page = write_report(run).read_text("utf-8")
    assert re.search(r'id="denoising".*<span class="aside">guidance 3, steps 50</span>', page, re.DOTALL)
    assert re.search(r'id="guidance".*<span class="aside">steps 50</span>', page, re.DOTALL)
    assert "temperature" not in page and "sampler" not in page


@pytest.mark.parametrize("name", ["strips", "guidance"])
def test_each_file_alone_makes_a_page(tmp_path, name):
    make_samples(tmp_path / "samples", count=1)
    for other in {"strips", "guidance"} - {name}:
        (tmp_path / "samples" / f"{other}.jsonl").unlink()
    page = write_report(tmp_path).read_text("utf-8")
    assert [f'id="{anchor}"' in page for anchor in ("denoising", "guidance")] == [name == "strips", name == "guidance"]


def test_missing_files_stay_in_their_place(run, tmp_path):
    make_samples(tmp_path / "samples", count=1)
    for name in ("strip-0-0.6", "guided-0-2.0"):
        (tmp_path / "samples" / f"image/{name}.png").unlink()
    page = write_report(tmp_path).read_text("utf-8")
    assert re.search(r"strip-0-0.6.png, the file is not there</p>\s*<figcaption>0.6", page)
    assert re.search(r'data-label="2"><p class="missing">image: image/guided-0-2.0.png, the file is not there', page)


def test_records_that_are_not_whole_and_hostile_ones_are_shown_and_never_run(tmp_path, browser):
    folder = tmp_path / "samples"
    made = noised(folder, 0.0, "image/a.png")
    outside = {"modality": HOSTILE, "file": "../../secret.png"}
    write_jsonl(folder / "strips.jsonl", [
        {}, {"steps": "none", "output": [made]}, {"steps": [1, {"level": HOSTILE, "part": made}, {"part": outside}]},
        {"prompt": [text(HOSTILE)], "steps": [{"level": float("nan"), "part": made}], "sampling": {HOSTILE: HOSTILE}},
    ])  # fmt: skip
    write_jsonl(folder / "guidance.jsonl", [
        {}, {"outputs": 3}, {"outputs": [{"guidance": HOSTILE, "part": made}]},
        {"prompt": [text(HOSTILE)], "outputs": [{"guidance": 2, "part": made}], "sampling": {HOSTILE: {HOSTILE: 1}}},
        {"outputs": [{"guidance": 1.5, "part": outside}], "truth": "none"},
    ])  # fmt: skip
    browser.open(write_report(tmp_path))
    assert browser.problems() == []
    assert browser.run("[document.scripts.length, document.querySelectorAll('.strip').length]") == [1, 3]


def test_long_strips_are_thinned_evenly_and_scales_are_sorted(tmp_path):
    steps = [{"level": 1 - i / 50, "part": text(str(i))} for i in range(51)]
    [group] = strips_module.strips([{"steps": steps, "output": text("made")}], Media(tmp_path))
    [row] = group["rows"]
    assert [view["text"] for _, view in row["steps"]] == [str(5 * i) for i in range(strips_module.MOST_STEPS)]
    assert row["steps"][0][0] == "1" and row["output"][0]["text"] == "made"
    records = [{"outputs": [{"guidance": g, "part": text(str(g))} for g in scales]} for scales in ((5, 1.5), (1.0,))]
    [group] = strips_module.guided(records, Media(tmp_path))
    assert group["scales"] == ["1", "1.5", "5"]
    cells = [[view and view["text"] for _, view in row["cells"]] for row in group["rows"]]
    assert cells == [[None, "1.5", "5"], ["1.0", None, None]]


def test_squared_errors_are_named(run):
    page = re.sub(r"<[^>]+>", "", write_report(run).read_text("utf-8"))
    said = "in nats per token where it is discrete; for image the mean squared error of the predicted velocity"
    assert page.count(said) == 3, "at the curves, in their data, and at the table of losses"
    table = numbers.loss_table(FIGURES, ["image"])
    assert [row["cells"] for row in table["rows"]] == [[(1.5, 1.0)], [(0.25, 1.0)]]
    assert numbers.loss_table(FIGURES, [])["rows"][1]["cells"] == [(0.25, pytest.approx(1 / 6))]


def test_figures_of_latents_have_names():
    labels = dict(numbers.codec_figures(FIGURES, {})["image"])
    assert labels["Latents on held-out data, mean"] == "-0.0125"
    assert labels["Latents on held-out data, standard deviation"] == "1.004"
