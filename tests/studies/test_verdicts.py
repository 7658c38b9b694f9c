"""Verdicts by rules that were written down before, and results that anyone makes anew from the kept logs."""

import json
import re
import shutil

import pytest
import yaml
from claims import ALL_SEEDS, Figure, Row, Value, _verdict, judge, read_claims
from conclude import conclude, main, open_questions
from helpers import ROOT
from helpers.close import differences
from helpers.fake_study import fake_analyses, fake_records, shipped

from plait.common.errors import ConfigError
from plait.compare.kept_rows import keep, kept_records
from plait.compare.results import gather

DOCS = ROOT / "docs"
CLAIMS = read_claims(DOCS / "claims.yaml")
ANY = [Figure("chameleon", "mot", "image")]


def verdict(values, **edges) -> str:
    values = [v if isinstance(v, Value) else Value(v) for v in values]
    return _verdict(Row("r", ANY, **edges), dict(enumerate(values)))


@pytest.mark.parametrize(
    ("values", "edges", "expected"),
    [
        ([0.3, 0.4], {"below": 0.8}, "reproduced"),
        ([0.3, 0.9], {"below": 0.8}, "inconclusive"),
        ([0.81, 0.9], {"below": 0.8}, "not reproduced"),
        ([0.3], {"below": 0.8}, "inconclusive"),  # one seed proves nothing
        ([], {"below": 0.8}, "not run yet"),
        ([1.2, 1.3], {"above": 1}, "reproduced"),
        ([0.9, 1.1], {"above": 0.85, "below": 1.15}, "reproduced"),
        ([0.8, 1.2], {"above": 0.85, "below": 1.15}, "not reproduced"),  # each outside, on whichever side
        ([0.8, 1.1], {"above": 0.85, "below": 1.15}, "inconclusive"),
        # a lower bound (some losses never reached) can refute "below", and never prove it
        ([Value(0.5, 1), 0.4], {"below": 0.8}, "inconclusive"),
        ([Value(0.9, 1), Value(1.0, 1)], {"below": 0.8}, "not reproduced"),
        ([Value(1.5, 1), 1.2], {"above": 1}, "reproduced"),
        ([Value(0.5, -1), 0.4], {"below": 0.8}, "reproduced"),  # what it is divided by was a lower bound
        ([Value(0.9, -1), Value(0.9, -1)], {"below": 0.8}, "inconclusive"),
        ([Value(0.1, None), Value(0.1, None)], {"below": 0.8}, "inconclusive"),
    ],
)
def test_verdicts_follow_the_rules(values, edges, expected):
    assert verdict(values, **edges) == expected


def test_a_number_that_is_the_same_for_all_seeds_needs_none():
    assert _verdict(Row("r", ANY, below=1), {ALL_SEEDS: Value(0.5)}) == "reproduced"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("conclude.draw_figures", lambda charts, where: [])
    written = yaml.safe_load((DOCS / "claims.yaml").read_text(encoding="utf-8"))
    for claim in written["claims"]:  # the rules alone, as before there were figures
        claim.pop("tried", None), claim.pop("decide", None)
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(written))
    return tmp_path


def results(folder) -> tuple[dict, dict]:
    found = json.loads((folder / "results.json").read_text())
    return {c["number"]: c["verdict"] for c in found["claims"]}, {r["figure"]: r for r in found["rows"]}


def test_claims_without_runs_are_not_run_yet(folder):
    path, still_open = conclude(folder, shipped)
    verdicts, rows = results(folder)
    assert set(verdicts.values()) == {"not run yet"} and sorted(verdicts) == list(range(1, 11))
    assert still_open == [] and path == folder / "results.md"
    identical = rows.pop("largest difference of identical towers from dense, losses and gradients, float64")
    assert identical["verdict"] == "reproduced" and 0 <= identical["ours"] < 1e-12
    assert all(r["ours"] is r["low"] is None and r["seeds"] == 0 for r in rows.values())


def test_figures_are_those_of_the_runs_seed_by_seed(folder):
    study = shipped("chameleon")
    records = fake_records(study)
    keep(study, records, fake_analyses(study, ["dense", "mot"]), folder / "study_logs")
    path, _ = conclude(folder, shipped)
    verdicts, rows = results(folder)
    assert [verdicts[n] for n in (1, 2, 3, 10)] == ["reproduced", "reproduced", "not run yet", "reproduced"]
    pairs = {p.modality: p for p in gather(study, records).pairs if (p.arm, p.split) == ("mot", "training")}
    shares = [pairs["image"].matches[s].ratio / pairs["text"].matches[s].ratio for s in (0, 1, 2)]
    row = rows["s(image) / s(text)"]
    assert [row["low"], row["high"]] == pytest.approx([min(shares), max(shares)], rel=1e-4) and row["seeds"] == 3
    assert row["ours"] == pytest.approx(sum(shares) / 3, rel=1e-4) and row["verdict"] == "reproduced"
    assert rows["time of a step, MoT over dense"]["ours"] == pytest.approx(0.91 / 0.9)
    assert verdicts[5] == "not run yet" and rows["s(image), MoT / MoE-4x"]["verdict"] == "reproduced"
    # ablation and hybrid share these runs
    assert rows["s(image), FFN apart"]["verdict"] == "reproduced" and rows["s(image), FFN apart"]["seeds"] == 2
    text = path.read_text()
    image = "![Attention across modalities](images/studies/chameleon/attention.png)"
    table = ("| 2 | **Chameleon", "**reproduced** |", "| chameleon | 15 | 0 | 15 |")
    for piece in (*table, "## Study chameleon", "### Learning rates tried", image):
        assert piece in text
    before = (folder / "results.json").read_bytes(), path.read_bytes()
    conclude(folder, shipped)  # from the kept logs alone
    assert before == ((folder / "results.json").read_bytes(), path.read_bytes())


def test_a_run_that_failed_leaves_its_claims_open(folder):
    """Neither its log of an earlier time nor the other seeds stand for it."""
    study = shipped("chameleon")
    records = fake_records(study)
    place = keep(study, records, {"components": []}, folder / "study_logs")
    conclude(folder, shipped)
    assert results(folder)[0][2] == "reproduced"
    failed = next(row for row in records.runs if (row["arm"], row["seed"]) == ("mot", 2))
    failed |= {"status": "failed", "error": "gone"}
    keep(study, records, {"components": []}, folder / "study_logs")
    assert (place / "mot-2.jsonl").exists()
    assert ("mot", 2) not in kept_records(study, folder / "study_logs").curves
    conclude(folder, shipped)
    verdicts, rows = results(folder)
    assert (
        verdicts[2] == rows["s(image) / s(text)"]["verdict"] == "not run yet"
        and rows["s(image) / s(text)"]["seeds"] == 2
    )


def test_over_a_lower_bound_stands_an_upper_one(folder):
    study = shipped("chameleon")
    records = fake_records(study)
    for seed in (0, 1, 2):  # the mixture of experts never reaches the last losses
        slow = records.curves["dense", seed]["training", "image"]
        records.curves["moe_expert_choice", seed]["training", "image"].losses = [loss + 0.1 for loss in slow.losses]
    keep(study, records, {"components": []}, folder / "study_logs")
    conclude(folder, shipped)
    row = results(folder)[1]["s(image), MoT / MoE-4x"]
    assert (row["bound"], row["verdict"]) == ("≤", "reproduced") and row["ours"] < 0.5


def test_a_refuted_claim_wants_to_know_what_was_tried(folder, monkeypatch, capsys):
    study = shipped("transfusion")
    records = fake_records(study)
    for seed in (0, 1, 2):  # the mixture is no faster than dense
        records.curves["mot", seed] = records.curves["dense", seed]
    keep(study, records, {"components": []}, folder / "study_logs")
    monkeypatch.setattr("sys.argv", ["conclude.py", str(folder)])
    main()
    assert "still open: claim 4 is not reproduced: claims.yaml must say what was tried" in capsys.readouterr().out
    verdicts, rows = results(folder)
    assert (
        verdicts[4] == "not reproduced"
        and rows["s(text)"]["paper"]
        and "What was tried" in (folder / "results.md").read_text()
    )


def test_at_most_three_are_inconclusive():
    rows = [{"number": n, "verdict": "inconclusive", "decide": "more seeds", "tried": ""} for n in range(4)]
    assert open_questions(rows) == ["4 claims are inconclusive, at most 3 may be"]
    assert open_questions(rows[:3]) == []
    rows[0]["decide"] = ""
    assert "claim 0 is inconclusive: claims.yaml must say what would decide it" in open_questions(rows)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"value": "stepsratio"}, r"unknown name 'stepsratio', .* did you mean 'steps_ratio'"),
        ({"study": "chamelon"}, r"claim 2: unknown name 'chamelon', .* did you mean 'chameleon'"),
        ({"modality": "imgae"}, r"modality of 'chameleon': unknown name 'imgae', .* did you mean 'image'"),
        ({"split": "vlidation"}, r"split of 'chameleon': unknown name 'vlidation', .* did you mean 'validation'"),
        ({"arm": "mott"}, r"arm of 'chameleon': unknown name 'mott'"),
        ({"modality": ""}, r"modality: '' is not allowed, it must be named for steps_ratio"),
    ],
)
def test_mistakes_in_claims_are_named(tmp_path, change, sentence):
    figure = {"study": "chameleon", "arm": "mot", "modality": "image"} | change
    claim = {"number": 2, "claim": "c", "rows": [{"figure": "f", "of": [figure], "below": 1}]}
    (tmp_path / "claims.yaml").write_text(json.dumps({"rules": [], "studies": ["chameleon"], "claims": [claim]}))
    with pytest.raises(ConfigError, match=sentence):
        claims = read_claims(tmp_path / "claims.yaml")
        study = shipped("chameleon")
        judge(claims.claims, {"chameleon": gather(study, fake_records(study, arms=["dense", "mot"]))}, float)


@pytest.fixture(scope="module")
def concluded(tmp_path_factory):
    """A folder with the committed logs, and what is made of them; and what the rules still ask for."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(DOCS / "claims.yaml", folder)
    shutil.copytree(DOCS / "study_logs", folder / "study_logs")
    return folder, conclude(folder, shipped)[1]


def test_the_committed_results_are_those_of_the_committed_logs(concluded):
    """And the rules are kept: what verdicts ask for is said, and no claim without a run has a number."""
    folder, still_open = concluded
    assert still_open == []
    fresh, committed = (json.loads((where / "results.json").read_text()) for where in (folder, DOCS))
    assert differences(fresh, committed) == [], "run: make verdicts"
    for claim in committed["claims"]:
        figures = [r for r in committed["rows"] if r["number"] == claim["number"]]
        assert figures and (claim["verdict"] != "reproduced" or all(r["verdict"] == "reproduced" for r in figures))


def test_the_committed_page_is_that_of_the_committed_logs(concluded):
    """Its words are the same, and its numbers nearly: another processor may round one the other way."""
    number = r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
    fresh, committed = ((where / "results.md").read_text(encoding="utf-8") for where in (concluded[0], DOCS))
    assert re.sub(number, "#", fresh) == re.sub(number, "#", committed), "run: make verdicts"
    pairs = zip(re.findall(number, fresh), re.findall(number, committed), strict=True)
    values = [tuple(float(text.replace(",", "")) for text in pair) for pair in pairs]
    assert [pair for pair in values if pair[0] != pytest.approx(pair[1], rel=0.01, abs=0.01)] == []


def test_a_changed_result_is_found_and_last_digits_are_not():
    committed = json.loads((DOCS / "results.json").read_text())
    another_processor = json.loads((DOCS / "results.json").read_text(), parse_float=lambda x: float(x) * (1 + 1e-13))
    assert differences(another_processor, committed) == []
    another_result = json.loads((DOCS / "results.json").read_text(), parse_float=lambda x: float(x) * (1 + 1e-4))
    assert len(differences(another_result, committed)) > 100
    assert differences({"a": [1, "x"]}, {"a": [1, "y"]}) and differences({"a": 1}, {"a": True})
    assert differences({"a": 1}, {}) and differences([1], [1, 2]) and differences(None, 0.0)


RUN = [row["study"] for row in json.loads((DOCS / "results.json").read_text())["studies"] if row["finished"]]


@pytest.mark.parametrize("study", RUN)
def test_the_pages_of_the_committed_studies_are_whole(concluded, browser, study):
    page = concluded[0] / "pages" / f"{study}.html"
    browser.open(page)
    browser.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.problems() == []
    drawn = browser.run("""[...document.querySelectorAll("figure.chart")].filter(f => f.offsetParent)
        .map(f => f.querySelectorAll(".line, .dot, .bar").length)""")
    assert len(drawn) >= 5 and min(drawn) > 0
    assert "NaN" not in browser.run("document.querySelector('main').innerHTML")


def test_the_ten_claims_are_all_there():
    assert [c.number for c in CLAIMS.claims] == list(range(1, 11)) and len(CLAIMS.rules) >= 4
    for claim in (*CLAIMS.claims, *CLAIMS.own):
        for row in claim.rows:
            for figure in (*row.of, *row.over):
                if figure.study:
                    config = shipped(figure.study).config
                    assert figure.arm in config.arms and figure.arm != config.arms[figure.arm].against
