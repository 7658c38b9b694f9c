"""The page of a study: whole in a real browser, every value to be read, every figure to be taken away."""

import csv
import io
import json
import time
from pathlib import Path

import pytest
from helpers.fake_study import fake_analyses, fake_records, shipped

from plait.cli import main
from plait.compare.analysis_charts import analysis_charts
from plait.compare.results import gather, write_results
from plait.compare.study_charts import charts
from plait.compare.study_page import write_study_page

HOSTILE = '</script><script>console.error("study")</script><img src=x onerror=console.error(1)>'


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    study = shipped("scale", tmp_path_factory.mktemp("study"))
    study.config.about += HOSTILE
    found = gather(study, fake_records(study))
    write_results(found, study.results)
    drawn = charts(found) + analysis_charts(found, fake_analyses(study, ["dense", "mot"]))
    return write_study_page(found, drawn, study.results / "study.html")


def show(browser, page: Path, **how) -> None:
    """Open the page and let it draw."""
    browser.open(page, **how)
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hover(browser, figure: str, across: float = 0.5, down: float = 0.5) -> str:
    """Move the pointer over a figure's first panel and return what is shown there."""
    box = browser.run(f"""(() => {{ const plot = document.querySelector("#{figure} .plot");
        plot.scrollIntoView({{block: "center", behavior: "instant"}}); const r = plot.getBoundingClientRect();
        return [r.left, r.top, r.width, r.height] }})()""")
    x, y = box[0] + across * box[2], box[1] + down * box[3]
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    return browser.run(f"""document.querySelector("#{figure} .tip")?.innerText ?? "" """)


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 390)])
def test_the_page_is_whole(page, browser, dark, width):
    show(browser, page, width=width, dark=dark)
    assert browser.problems() == []
    assert browser.run("document.documentElement.scrollWidth") == width  # nothing sticks out
    titles = browser.run("[...document.querySelectorAll('h2')].map(e => e.textContent)")
    assert titles == ["Steps for the same loss", "Beside the paper", "Losses", "Step matching", "Scaling",
                      "Inside the models", "Arms", "Learning rates tried", "Runs"]  # fmt: skip
    drawn = browser.run("""[...document.querySelectorAll("figure.chart")].filter(f => f.offsetParent).map(f =>
        [f.id, f.querySelectorAll(".panel").length, f.querySelectorAll(".line, .dot, .bar").length])""")
    assert {"steps", "losses_validation", "matching_training", "scaling", "separation", "attention", "conflict",
            "conflict_steps", "components_mot"} <= {name for name, _, _ in drawn}  # fmt: skip
    assert all(panels > 0 and shapes > panels for _, panels, shapes in drawn)
    assert "NaN" not in browser.run("document.querySelector('main').innerHTML")
    assert HOSTILE in browser.run("document.querySelector('.lede').textContent")


def test_values_are_read_under_the_pointer_and_by_keys(page, browser):
    show(browser, page)
    results = json.loads((page.parent / "results.json").read_text())
    said = hover(browser, "steps", 0.3).replace("\n", " ")
    row = next(m for m in results["matches"] if (m["arm"], m["split"], m["modality"]) == ("mot", "validation", "text"))
    assert said.startswith("text ") and f"{row['steps_ratio']:.4g}".rstrip("0") in said and " to " in said
    said = hover(browser, "losses_validation", 0.5)
    assert "training step" in said and all(arm in said for arm in ("dense_48", "mot_128"))
    assert "step of" in hover(browser, "matching_validation", 0.6)
    assert "first component" in hover(browser, "components_mot", 0.5)
    said = browser.run("""(() => { const plot = document.querySelector("#conflict .plot"); plot.focus();
        for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft"])
            plot.dispatchEvent(new KeyboardEvent("keydown", {key}));
        return document.querySelector("#conflict .tip").innerText })()""")
    assert said.startswith("block 1")


def test_the_legend_switches_arms_off(page, browser):
    show(browser, page)
    count = "document.querySelectorAll('#losses_training .panel:first-child .line').length"
    before = browser.run(count)
    assert "dense" in hover(browser, "losses_training", 0.5).splitlines()
    browser.run("document.querySelector('#losses_training .legend button').click()")
    assert browser.run(count) == before - 1
    assert "dense" not in hover(browser, "losses_training", 0.5).splitlines()
    browser.run("document.querySelector('#losses_training .legend button').click()")
    assert browser.run(count) == before


def test_figures_are_taken_away_as_png_and_csv(page, browser, tmp_path):
    show(browser, page)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for kind in ("png", "csv"):
        browser.run(f"document.querySelector('#steps .{kind}').click()")
    until = time.monotonic() + 20
    while {p.name for p in tmp_path.iterdir()} != {"steps.png", "steps.csv"} and time.monotonic() < until:
        time.sleep(0.05)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "steps.csv").read_text())))
    results = json.loads((page.parent / "results.json").read_text())
    row = next(m for m in results["matches"] if (m["arm"], m["split"], m["modality"]) == ("mot", "training", "image"))
    mine = next(r for r in rows if (r["series"], r["panel"], r["x"]) == ("mot", "training", "image"))
    for column, key in (("y", "steps_ratio"), ("low", "steps_ratio_low"), ("high", "steps_ratio_high")):
        assert float(mine[column]) == pytest.approx(row[key], rel=1e-5)
    image = pytest.importorskip("PIL.Image").open(tmp_path / "steps.png")
    frame = browser.run("document.querySelector('#steps').getBoundingClientRect().width")
    assert abs(image.width - 2 * frame) <= 2 and len(image.convert("RGB").getcolors(1 << 24)) > 20
    orange = (192, 79, 23)  # the arm's own colour: style sheets are taken along
    assert orange in {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


def test_nothing_is_drawn_of_nothing():
    study = shipped("scale")
    assert charts(gather(study, fake_records(study, arms=["none"]))) == []


def test_logs_of_other_trainers_have_a_page(browser, tmp_path, capsys):
    """Names that such logs bring are text, and their files stay in the folder."""
    hostile = f"../{HOSTILE}"
    for name, speed in (("dense", 1), ("mine", 2)):
        loss_of = {"loss/text": 8, f"val_loss/{hostile}/text": 4}
        rows = [{"step": t} | {key: top - t * speed / 512 for key, top in loss_of.items()} for t in range(0, 1001, 50)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logs = [str(tmp_path / f"{name}.jsonl") for name in ("dense", "mine")]
    assert main(["compare", "--from-logs", *logs, "--out", str(tmp_path / "match")]) == 0
    page = tmp_path / "match" / "logs.html"
    assert f"page: {page}" in capsys.readouterr().out
    show(browser, page)
    assert browser.problems() == []
    titles = browser.run("[...document.querySelectorAll('h2')].map(e => e.textContent)")
    assert titles == ["Steps for the same loss", "Losses", "Step matching"]
    assert "mine" in hover(browser, "losses_training") and "0.5" in hover(browser, "steps", 0.3)
    written = {p.name for p in (tmp_path / "match").iterdir()}
    assert {"results.json", "results.md", "logs.html", "losses_training.png", "matching_training.png"} <= written
    assert {p.name for p in tmp_path.iterdir()} == {"dense.jsonl", "mine.jsonl", "match"}
