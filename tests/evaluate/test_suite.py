"""The suite of `plait evaluate`: a model that copies the truth scores the ceiling, one that copies another's zero."""

import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers.evaluation import CODECS, THINGS, caption, document, drawn
from helpers.fake_data import FakeImage, FakeOptions, run_config, write_folder

from plait.batch.assemble import spell, spell_prompt
from plait.batch.documents import Document, Part
from plait.common.errors import PlaitError
from plait.common.progress import QuietProgress
from plait.config.generation import GenerateConfig, SamplingConfig
from plait.config.model import ModelConfig
from plait.config.run import EvaluateConfig
from plait.data.sources import resolve_vocabulary
from plait.evaluate import held, image_judge, recogniser, speech_judge
from plait.evaluate.recogniser import Recognised
from plait.evaluate.suite import Suite
from plait.generate import Generator
from plait.generate.pipeline import Pipeline
from plait.model.mot import MixtureOfTransformers
from plait.prepare.raw import RawDocument


class Truths:
    """What the source of these documents knows."""

    chances: ClassVar = {"object": 1 / len(THINGS), "ground": 0.1}

    def caption(self, meta):
        return meta.get("caption", "")

    def scores(self, said, metas):
        pairs = list(zip(said, metas, strict=True))
        return {"object": [m["shows"] in s for s, m in pairs], "exact": [m["caption"] == s for s, m in pairs]}

    def thing(self, meta):
        return meta.get("shows", "")

    def things(self):
        return THINGS

    def reference(self, kind, thing, size):
        return drawn(thing)

    def item_scores(self, kind, images, metas):
        return {"ground": [bool((i == drawn(m["shows"])).all()) for i, m in zip(images, metas, strict=True)]}

    def nearest(self, metas, others):
        shown = [other.get("shows") for other in others]
        return [shown.index(THINGS[(THINGS.index(m["shows"]) + 1) % len(THINGS)]) for m in metas]

    def openings(self, metas, count, seed):
        return [f"a {thing} on" for thing in THINGS], np.array([THINGS.index(m["shows"]) for m in metas])


class Origin:
    """A source that makes the documents again."""

    truths, trials = Truths(), None

    def splits(self):
        return {"train": len(THINGS), "seen": len(THINGS)}

    def read(self, split, start, stop):
        for i in range(start, min(stop, len(THINGS))):
            parts = [("text", caption(i)), ("image", drawn(THINGS[i])), ("audio", document(i).parts[2].ids)]
            yield RawDocument(parts, {"caption": caption(i)})


class Planted(MixtureOfTransformers):
    """Knows what follows each part of a document, and reads what came before out of the cache, where it wrote it."""

    def __init__(self, config, turn: int = 0):
        super().__init__(config)
        self.follows: dict[tuple, int] = {}
        for i in range(len(THINGS)):
            for given in document(i).parts:
                for made in document((i + turn) % len(THINGS)).parts:
                    self._learn([given], made)
        with torch.no_grad():
            weight = self.head["shared"].weight
            weight.copy_(torch.eye(*weight.shape))

    def _learn(self, given: list[Part], made: Part) -> None:
        before = [int(i) for run in spell_prompt(given, self.config) for i in run.ids]
        after = [int(i) for run in spell(Document([made]), self.config)[1:] for i in run.ids]
        for n, token in enumerate(after):
            if token not in self.config.layout.opening.values():  # which span opens is what is asked for
                self.follows[(*before, *after[:n])] = token

    def forward(self, batch, cache=None):
        histories = np.split(batch.ids.numpy(), np.cumsum(batch.lengths)[:-1])
        if cache is not None:
            histories = self._histories(batch, cache)
        hidden = torch.zeros(batch.num_tokens, self.config.width)
        at = 0
        for history, count in zip(histories, batch.lengths, strict=True):
            for n in range(len(history) - count, len(history)):
                hidden[at, self.follows.get(tuple(history[: n + 1].tolist()), 0)] = 100.0
                at += 1
        return list(hidden[batch.routing.to_towers].split(batch.routing.padded_sizes))

    def _histories(self, batch, step) -> list[np.ndarray]:
        cache, c = step.cache, self.config
        new = batch.ids.float()[:, None, None].expand(-1, c.num_kv_heads, c.head_dim)
        step.attend(0, new.repeat_interleave(c.num_heads // c.num_kv_heads, 1), new, new)
        rows = [row for row, _ in step.kept] or list(range(len(batch.lengths)))
        ends = [cache.lengths[row] + n for row, n in zip(rows, batch.lengths, strict=True)]
        step.commit()
        return [
            cache.span(0, cache.locate(row, end), 0, end)[0][:, 0, 0].long().numpy()
            for row, end in zip(rows, ends, strict=True)
        ]


class Pixels:
    """An image's features are its pixels."""

    key = "pixels"

    def features(self, images):
        return torch.stack([torch.from_numpy(p[:, :, 0].ravel().astype(np.float32)) for p in images])


class Spelled:
    """Reads the letters that a clip's samples are, as no other recogniser does."""

    key = "letters"

    def transcribe(self, clips, sample_rate):
        return [bytes(clip.astype(np.uint8)).decode(errors="replace") for clip in clips]


def documents_of(origin, split, numbers, *, scattered=False):
    documents = list(origin.read(split, 0, 99))
    documents[2:2] = [None, None]  # two rows more than the origin has, see below
    return [documents[n] for n in numbers]


def heard(clips, captions, *, sample_rate):
    said = Spelled().transcribe(clips, sample_rate)
    hits = [text == caption for text, caption in zip(said, captions, strict=True)]
    return Recognised(float(np.mean(hits)), len(hits), 0, hits, said)


@pytest.fixture
def config(tmp_path, monkeypatch):
    documents = [document(i) for i in range(len(THINGS))]
    # one that lacks parts, and one of which nothing is known, are passed over
    lacking = Document([Part("text", np.arange(3))], meta={"caption": "a fox"})
    documents[2:2] = [lacking, dataclasses.replace(document(1), meta={})]
    folder = write_folder(tmp_path / "data", {"train": documents, "seen": documents})
    config = run_config(folder, tasks={"text,image": 1.0, "image,text": 1.0})
    config.model = ModelConfig(modalities=config.model.modalities, width=512, num_heads=2, num_layers=1)
    config = resolve_vocabulary(config)
    config.generate = GenerateConfig(batch_size=4, max_tokens={"text": 40, "speech": 40})
    config.evaluate = EvaluateConfig(batches=1)
    monkeypatch.setattr(held, "remade", lambda *a: Origin())
    monkeypatch.setattr(held, "raw_documents", documents_of)
    monkeypatch.setattr(image_judge, "extractor", lambda name: Pixels())
    monkeypatch.setattr(image_judge, "LEAST", 2)
    monkeypatch.setattr(speech_judge, "transcriber", lambda name: Spelled())
    monkeypatch.setattr(recogniser, "recognised_share", heard)
    monkeypatch.setattr(recogniser, "ProcessPoolExecutor", lambda workers, context: ThreadPoolExecutor(workers))
    return config


def suite_of(config, turn: int, folder=None) -> Suite:
    pipeline = Pipeline(Planted(config.model, turn), CODECS, config.generate, config.diffusion)
    return Suite(config, pipeline, QuietProgress(), folder=folder)


def figures_of(config, turn: int) -> dict[str, float]:
    return suite_of(config, turn).run()


SHARES = ["caption_object_accuracy", "caption_exact_accuracy", "caption_speech_object_accuracy",
          "caption_speech_exact_accuracy", "caption_choice_accuracy", "caption_speech_choice_accuracy",
          "image_object_accuracy", "speech_recognised", "text_via_image_exact_accuracy", "text_via_speech_exact",
          "image_via_text_object_accuracy", "speech_via_text_recognised"]  # fmt: skip
ERRORS = ["speech_wer", "speech_cer", "caption_speech_wer", "text_via_speech_wer"]
LIKENESS = ["image_match", "speech_match", "image_via_text_match"]


def test_a_model_that_copies_the_truth_scores_the_ceiling(config, monkeypatch):
    rows, start = [], Generator.__init__
    monkeypatch.setattr(Generator, "__init__", lambda self, *a, **k: rows.append(k["max_rows"]) or start(self, *a, **k))
    figures = figures_of(config, 0)
    assert {name: figures[name] for name in SHARES} == dict.fromkeys(SHARES, 1.0)
    assert figures["caption_object_chance"] == 1 / len(THINGS) and figures["image_object_accuracy_count"] == len(THINGS)
    assert figures["image_frechet"] == pytest.approx(0, abs=1e-3) and figures["image_object_codec"] == 1.0
    assert figures["speech_codec_recognised"] == figures["speech_codec_recognised_originals"] == 1.0
    assert {name: figures[name] for name in ERRORS} == dict.fromkeys(ERRORS, 0.0)
    assert {name: figures[name] for name in LIKENESS} == pytest.approx(dict.fromkeys(LIKENESS, 1.0), abs=1e-5)
    assert figures["image_match_codec"] == pytest.approx(1.0, abs=1e-5) and figures["image_match_shuffled"] < 0.5
    assert figures["image_psnr_codec"] == 100 and figures["speech_seconds"] == figures["speech_seconds_real"] > 0
    assert set(rows) == {4}  # as many together as the run's config says


def test_every_figure_of_what_is_made_has_an_interval_and_its_number_of_items(config):
    figures = figures_of(config, 0)
    beside = ("_real", "_codec", "_blurred", "_nearest", "_random", "_shuffled", "_chance", "_among", "_originals")
    alone = {n for n in figures if "/" not in n and not n.endswith(beside) and "choice" not in n}
    alone -= {n for n in alone if n.startswith(("val_loss", "perplexity")) or n.endswith("codec_recognised")}
    named = {n for n in alone if not n.endswith(("_low", "_high", "_count"))}
    assert alone == {f"{name}{end}" for name in named for end in ("", "_low", "_high", "_count")}
    assert len(named) > 60
    for name in named:
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"] and figures[f"{name}_count"] > 0


def test_a_model_that_copies_another_documents_truth_scores_zero(config):
    figures = figures_of(config, 1)
    there_and_back = [name for name in SHARES if "_via_" in name]  # the other's other: neither is it the own one
    assert {name: figures[name] for name in SHARES} == dict.fromkeys(SHARES, 0.0) and len(there_and_back) == 4
    assert figures["image_match"] < 0.5 and figures["speech_wer"] > 0.1


def test_training_items_that_a_model_repeats_are_told_from_held_out_ones(config):
    """What is held out here lies in training too, so that the real ones are as near: the reference says so."""
    figures = figures_of(config, 1)
    for name in ("image", "speech"):
        assert figures[f"{name}_neighbour"] == pytest.approx(figures[f"{name}_neighbour_real"]) == pytest.approx(1)
    assert figures["image_neighbour_among"] == len(THINGS)
    assert figures["caption_in_training"] == figures["caption_in_training_real"] == figures["caption_neighbour"] == 1


def test_pairs_without_the_host_are_measured_where_they_are_trained(config):
    assert not any("_from_" in name for name in figures_of(config, 0))
    config.data.tasks = {"image,speech": 1.0}
    figures = figures_of(config, 0)
    assert figures["speech_from_image_recognised"] == 1.0 and "image_from_speech_object_accuracy" not in figures
    config.data.tasks = {}  # documents as written: text, image, speech
    figures = figures_of(config, 0)
    assert figures["speech_from_image_recognised"] == 1.0 and "image_from_speech_object_accuracy" not in figures


def test_all_that_a_task_gives_is_given(config):
    """Also there and back; what is always given together is measured once, and called by the text or the last."""
    config.data.tasks = {"image,text,speech": 1.0, "text,image,speech": 1.0, "speech,image,text": 1.0}
    suite = suite_of(config, 0)
    model = suite.pipeline.model
    model.follows.clear()
    for text, image, speech in (document(i).parts for i in range(len(THINGS))):
        model._learn([text], image)
        model._learn([image, text], speech)
        model._learn([speech, image], text)
    figures = suite.run()
    sure = ["caption_exact", "caption_choice_accuracy", "image_object_accuracy", "speech_recognised",
            "text_via_image_exact", "image_via_text_object_accuracy"]  # fmt: skip
    assert {name: figures[name] for name in sure} == dict.fromkeys(sure, 1.0)
    assert not any(name.startswith(("caption_speech", "speech_from", "text_via_speech")) for name in figures)
    config.data.tasks |= {"speech,text": 1.0}  # which needs no image
    assert suite_of(config, 0).together("speech", "text") == ("speech",)
    assert figures_of(config, 0)["caption_speech_exact"] == 1.0


def test_answers_of_conversations_are_held_against_the_documents_own(config, tmp_path, monkeypatch):
    """Of text alone, with a question that is given; nothing of it is sent there and back."""
    monkeypatch.setattr(held, "remade", lambda *a: None)
    said = [[np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in (f"{t}?", f"the {t}")] for t in THINGS]
    documents = [Document([Part("text", question, loss=0.0), Part("text", answer)]) for question, answer in said]
    config.data.path = str(write_folder(tmp_path / "chats", {"train": documents, "seen": documents}))
    suite = suite_of(config, 0)
    for question, answer in said:
        suite.pipeline.model._learn([Part("text", question)], Part("text", answer))
    figures = suite.run()
    assert figures["answer_exact"] == 1.0 and figures["answer_exact_count"] == len(THINGS)
    assert not any("via" in name or name.startswith("caption") for name in figures)


class Fits:
    """Scores 100 for an image of the thing that its text names, as a CLIP would like to."""

    key = "fits"

    def __init__(self, name):
        assert name == "a/clip"

    def scores(self, images, texts):
        return [
            100.0 * bool((image == drawn(text.split()[1])).all()) for image, text in zip(images, texts, strict=True)
        ]


def test_clip_scores_stand_beside_those_of_other_images(config, monkeypatch):
    monkeypatch.setattr(image_judge, "ClipScore", Fits)
    config.evaluate.clip = "a/clip"
    best, worst = figures_of(config, 0), figures_of(config, 1)
    assert (best["image_clip"], best["image_clip_codec"], best["image_clip_random"]) == (100, 100, 0)
    assert (worst["image_clip"], worst["image_clip_real"], worst["image_clip_shuffled"]) == (0, 100, 0)
    assert best["image_clip_nearest"] == 0 and best["image_via_text_clip"] == 100  # another's, by these truths


def test_a_judge_that_is_not_installed_is_said_and_one_that_was_named_must_be_there(config, monkeypatch):
    said = []
    monkeypatch.setattr(QuietProgress, "print", lambda self, line: said.append(line), raising=False)
    for module in ("pocketsphinx", "torchmetrics.image.kid"):
        monkeypatch.setitem(sys.modules, module, None)
    figures = figures_of(config, 0)
    assert figures["caption_exact"] == 1.0 and not any(name.startswith(("image_", "speech_")) for name in figures)
    for name, package in (("image", "torchmetrics"), ("speech", "pocketsphinx")):
        cure = f"package {package!r} is not installed, install it: pip install 'plait[judges]'"
        assert f"skipping the figures of {name!r}: evaluate: {cure}" in said
    monkeypatch.undo()
    config.evaluate.features = "inception:nowhere.pth"
    with pytest.raises(PlaitError, match=r"^evaluate\.features: "):
        figures_of(config, 0)


def test_what_no_model_changes_is_computed_once(config, tmp_path, monkeypatch):
    first = suite_of(config, 0, tmp_path / "evaluation")
    figures = first.run()
    shown = [json.loads(line) for line in (tmp_path / "evaluation/examples/examples.jsonl").read_text().splitlines()]
    assert {tuple(r["path"]) for r in shown} >= {("text", "image"), ("image", "text"), ("text", "image", "text")}
    assert {r["rule"] for r in shown} == {"best", "median", "worst"} and all(r["output"] for r in shown)
    judged, features = [], Pixels.features
    monkeypatch.setattr(Pixels, "features", lambda self, images: judged.append(len(images)) or features(self, images))
    again = suite_of(config, 0, tmp_path / "evaluation")
    assert again.run() == figures and again.items == first.items
    assert judged == [len(THINGS)] * 2  # what was made from text, and by way of text
    other = suite_of(config, 1, tmp_path / "evaluation").run()
    assert other["image_frechet_codec"] == figures["image_frechet_codec"] and other != figures
    for file in (tmp_path / "evaluation/references").iterdir():
        file.write_bytes(file.read_bytes()[:-9])  # cut short
    assert suite_of(config, 0, tmp_path / "evaluation").run() == figures
    assert again.seconds.keys() >= {"losses", "make text > image", "judge text > image", "free documents"}


def test_an_image_of_any_number_of_ids_comes_back_whole(config):
    """As many positions as the model has, and the extent that the run's config says."""
    config.generate.grids, config.generate.speculate = {"image": [34, 34]}, 128
    config.generate.sampling = {"image": SamplingConfig(temperature=0)}
    config.model = ModelConfig(modalities=config.model.modalities, width=8, num_heads=1, num_layers=1)
    model = MixtureOfTransformers(config.model)
    model.head["shared"].weight.data.zero_()  # one id after the other is the same, so that all guesses are right
    codecs = CODECS | {"image": FakeImage(FakeOptions())}  # which decodes nothing
    pipeline = Pipeline(model, codecs, config.generate, config.diffusion)
    (made,) = Suite(config, pipeline, QuietProgress()).complete([document(0)], "text", "image", "")
    assert made.shape == (34 * 34,)


def test_what_is_asked_of_a_document():
    text, question, image = (
        Part("text", np.arange(3)),
        Part("text", np.arange(4), loss=0.0),
        Part("image", np.arange(9)),
    )
    given, answer = dataclasses.replace(image, loss=0.0), Part("text", np.arange(5))
    assert held.asked_of(Document([text, image]), "image", "text") == ([image], text)
    assert held.asked_of(Document([text, image]), "text", "image") == ([text], image)
    prompt, after = held.asked_of(Document([question, given, question, answer, image]), "image", "text")
    assert [p is q for p, q in zip(prompt, [question, given, question], strict=True)] == [True] * 3 and after is answer
    assert held.asked_of(Document([question, image]), "text", "image")[1] is image


def test_a_mark_that_ends_an_answer_is_no_word_of_it(config):
    config.model = dataclasses.replace(config.model, stops=[7])
    pipeline = Pipeline(MixtureOfTransformers(config.model), CODECS, config.generate, config.diffusion)
    said = np.frombuffer(b"yes", np.uint8).astype(np.int32)
    documents = [Document([Part("text", said)]), Document([Part("text", np.append(said, 7))])]
    suite = Suite(config, pipeline, QuietProgress())
    assert suite.training.texts(documents) == ["yes", "yes"]


def test_a_document_without_text_has_none(config):
    """A policy's data may have sentences beside images for some of its episodes alone."""
    suite = suite_of(config, 0)
    mute, said = Document([Part("image", np.arange(9))]), Document([Part("text", np.frombuffer(b"yes", np.uint8))])
    assert suite.training.texts([mute, said, mute]) == ["", "yes", ""]


class Own(Origin):
    """A user's own documents: nothing is known of them but what they hold."""

    truths = None

    def splits(self):
        return {"train": len(THINGS) + 2, "seen": len(THINGS) + 2}

    def read(self, split, start, stop):
        rows = list(super().read(split, 0, 99))
        rows[2:2] = [RawDocument([("text", "abc")]), rows[1]]
        yield from rows[start:stop]


def test_a_users_own_documents_are_measured_too(config, monkeypatch):
    """Against what they hold; rows whose meta happens to have a caption, as img2dataset writes one, are no scenes."""
    monkeypatch.setattr(held, "remade", lambda *a: None)
    monkeypatch.setattr(held, "opened", lambda *a: Own())
    monkeypatch.setattr(held, "raw_documents", lambda o, split, ns, **k: [list(o.read(split, 0, 99))[n] for n in ns])
    best, worst = figures_of(config, 0), figures_of(config, 1)
    for figures, exact, recognised in ((best, 1.0, 1.0), (worst, 0.0, 0.0)):
        for name in ("caption", "caption_speech"):
            assert figures[f"{name}_exact"] == figures[f"{name}_exact/seen"] == exact
            assert figures[f"{name}_exact_count"] == len(THINGS) + 1
            assert figures[f"{name}_in_training"] == figures[f"{name}_in_training_real"] == 1.0  # here it is both
            assert (figures[f"{name}_cider"] > 9) is (exact == 1)
        assert (figures["caption_speech_wer"] == 0) is (exact == 1)
        assert figures["speech_recognised"] == recognised
    assert best["image_frechet"] == pytest.approx(0, abs=1e-3) and worst["image_frechet"] >= 0
    assert not any("object" in name or "choice" in name for name in best)


def test_files_that_changed_are_said_and_no_reason_to_stop(config, monkeypatch):
    monkeypatch.setattr(held, "remade", lambda *a: None)
    said = []
    monkeypatch.setattr(QuietProgress, "print", lambda self, line: said.append(line), raising=False)
    monkeypatch.setattr(held, "opened", lambda *a: Origin())  # two documents fewer
    figures = figures_of(config, 0)
    assert "image_frechet" not in figures and figures["caption_exact"] == 1.0
    assert "are not there as they were, so that made images and speech are held against nothing" in said[0]
