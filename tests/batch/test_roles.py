"""One rule of roles: a prompt has the towers, the mask and the positions in training that it has when it is used."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.fake_data import write_folder

from plait.batch.assemble import assemble, pack, spell_prompt
from plait.batch.documents import Document, Part, as_given, role_of
from plait.batch.spans import towers_of
from plait.codecs.base import Encoded
from plait.common.progress import QuietProgress
from plait.config.file import load
from plait.config.generation import SamplingConfig
from plait.config.model import ModalityConfig
from plait.config.run import RunConfig
from plait.config.shipped import config_path
from plait.config.tasks import mentions_of
from plait.data.sources import AS_WRITTEN, TaskSource, open_sources, resolve_vocabulary
from plait.evaluate import forced_choice as evaluate_text
from plait.evaluate.suite import Suite
from plait.generate import Generator, Request, engine
from plait.generate.pipeline import Pipeline
from plait.model.mask import dense_mask, segments
from plait.model.mot import MixtureOfTransformers

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
GRID = (2, 3)
IDS = [np.arange(3)]


def part(config: RunConfig, name: str, seed: int) -> Part:
    """Return a part of a modality as it is stored."""
    rng, modality = np.random.default_rng(seed), config.model.modalities[name]
    reader = config.model.readers.get(name)
    features = part(config, reader, seed + 1) if reader else None
    if modality.objective != "next_token":
        latents = rng.standard_normal((6, modality.latent_channels or 8)).astype(np.float32)
        return Part(name, latents=latents, grid=GRID, features=features)
    grid = GRID if config.modalities[name].codec.startswith("image") else ()
    return Part(name, rng.integers(0, 200, 6).astype(np.int32), grid=grid)


class Stored:
    """A codec whose media are parts already."""

    default_grid, names_files, key, kind = (), False, "", ""

    def __init__(self, key):
        self.key = key

    def encode(self, media):
        return [Encoded(p.ids, p.latents, p.grid) for p in media]


@pytest.fixture(params=CONFIGS)
def config(request, tmp_path):
    """Every shipped config over a folder: all its modalities twice, once, and media without loss before a text."""
    config = load(config_path(request.param), [f"out={tmp_path}", f"data.path={tmp_path / 'data'}"])
    config.data.sources = {}  # here all is in one folder
    records = {}
    for name, m in config.model.modalities.items():
        ids = m.objective == "next_token"
        records[name] = {"codec": config.modalities[name].codec, "key": name, "reads": m.reads, "default_grid": [],
                         "vocab_size": (m.vocab_size or 256) * ids,
                         "latent_channels": 0 if ids else m.latent_channels or 8, "patch_size": m.patch_size or 1,
                         "fingerprint": ""}  # fmt: skip
    names = [name for name, m in config.model.modalities.items() if not m.reads] * 2
    documents = [Document([part(config, n, k + 9 * i) for k, n in enumerate(names)]) for i in range(3)]
    documents[1].parts = documents[1].parts[: len(names) // 2]
    documents[2].parts = [documents[2].parts[k] for k in (1, 0)]  # media, which carries no loss, and a text about it
    documents[2].parts[0].loss = 0.0
    write_folder(config.data.path, {"train": documents}, modalities=records)
    return resolve_vocabulary(config)


def facts(batch, config: RunConfig, length: int) -> dict[str, np.ndarray]:
    """Return what decides how the first tokens of a batch's first document go through the model."""
    roles = np.repeat([s.role for s in batch.spans], [s.length for s in batch.spans])
    mask = dense_mask(segments(batch.spans), batch.num_tokens).numpy()
    return {"tower": towers_of(batch.spans, config.model, [0] * 9)[:length], "role": roles[:length],
            "position": batch.positions.numpy()[:length], "mask": mask[:length, :length]}  # fmt: skip


class Captured(Exception):
    """The first batch was seen; no model has to run."""


def captured(monkeypatch, module, run) -> list:
    seen = []

    def watch(*args, **kwargs):
        seen.append(assemble(*args, **kwargs))
        raise Captured

    monkeypatch.setattr(module, "assemble", watch)
    with pytest.raises(Captured):
        run()
    monkeypatch.undo()
    return seen[0]


def test_a_prompt_is_the_same_in_training_evaluation_and_generation(config, monkeypatch):
    (source,) = open_sources(config, "train")
    with torch.device("meta"):
        model = MixtureOfTransformers(config.model)
    codecs = {name: Stored(name) for name in config.model.modalities}
    grids = {n: list(GRID) for n, m in config.model.modalities.items() if n != config.model.layout.host}
    settings = dataclasses.replace(config.generate, grids=grids, precision="float32", cuda_graphs=False)
    pipeline = Pipeline(model, codecs, settings, config.diffusion)
    suite, read = Suite(config, pipeline, QuietProgress()), set(config.model.readers.values())
    for stored, document in cases(config, source):
        given, output = document.parts[: len(stored)], document.parts[len(stored)].modality
        assert {p.role for p in given} == {"understanding"} and document.parts[-1].role == "generation"
        length = 1 + sum(map(functools.partial(num_tokens, config), given))
        trained = facts(pack([document], config.model), config, length)
        media = [(p.modality, p) for p in Document(stored).stored]  # features behind their part
        plain = {output: SamplingConfig(steps=2)}
        ways = {
            "generation": (engine, lambda m, o, s: pipeline.generate_from_media([m], [o], sampling=s)),
            "choices": (
                evaluate_text,
                lambda m, o, s: evaluate_text.continuation_scores(model, [p for n, p in m if n not in read], IDS),
            ),
            "evaluation": (engine, lambda m, o, s: suite.complete([Document([m[0][1]])], m[0][0], o, "", s)),
        }
        for way in ways if len(stored) == 1 else ("generation", "choices"):
            module, run = ways[way]
            batch = captured(monkeypatch, module, functools.partial(run, media, output, plain))
            for fact, value in facts(batch, config, length).items():
                np.testing.assert_array_equal(value, trained[fact], err_msg=f"{way}: {fact}")


def num_tokens(config: RunConfig, given: Part) -> int:
    """Return the tokens of a given part, delimiters included."""
    own = len(given) + 2 * (given.modality != config.model.layout.host)
    reader = config.model.readers.get(given.modality)
    if reader is None:
        return own
    return own * config.model.modalities[reader].beside + len(given.features) + 2


def cases(config: RunConfig, source):
    """Yield what is given, as it is stored, and the document as it is trained on; for every task, and as written."""
    tasks = [t for t in config.data.tasks if "," in t] or ["text,image", "image,text"]
    arranged = TaskSource(source, config.model, dict.fromkeys(tasks, 1.0))
    asked = [(int(len({*mentions_of(t)}) == len(mentions_of(t))), k) for k, t in enumerate(tasks)]
    for number, task in [*asked, (2, AS_WRITTEN)]:
        written, document = source.document(number), arranged.document(number, task, 0)
        places = [p for p, _ in arranged.choose([p.modality for p in written.parts], task, 0)]
        count = next(k for k, p in enumerate(document.parts) if p.role == "generation")
        yield [written.parts[p] for p in places[:count]], document


def small(name: str) -> RunConfig:
    sizes = {"model.width": 32, "model.num_layers": 1, "model.num_heads": 2, "model.num_kv_heads": 2,
             "model.head_dim": 16, "model.ffn_width": 32, "model.modalities.text.vocab_size": 32,
             "model.modalities.image.latent_channels": 8, "model.modalities.image.patch_size": 1}  # fmt: skip
    return load(config_path(name), [f"{key}={value}" for key, value in sizes.items()])


@pytest.mark.parametrize("name", ["bagel_like", "cosmos_like", "quickstart_transfusion"])
def test_what_follows_a_made_image_sees_what_training_saw(name):
    """An image was just made, and text goes on: beside the noise, all is as in a document with that image."""
    config = small(name)
    model = MixtureOfTransformers(config.model).requires_grad_(False)
    generator = Generator(model, grids={"image": GRID}, diffusion=config.diffusion)
    sampling = {"image": SamplingConfig(steps=2), "text": SamplingConfig(temperature=0)}
    generator.add(Request([Part("text", np.arange(4))], None, sampling, {"text": 6}))
    (row,) = generator.rows
    generator._open(row, "image")
    while row.span == "image":
        generator.step()
    layout, batches = config.model.layout, []
    runs, position = list(row.main.pending), row.main.position
    after = assemble([[*runs, dataclasses.replace(runs[-1], ids=np.array([7]), role="generation")]], config.model,
                     first_positions=[position])  # fmt: skip
    batches.append(after)
    document = Document([*as_given([Part("text", np.arange(4))]), row.parts[0], Part("text", np.array([7]))])
    whole = pack([document], config.model)
    told = [(s.modality, s.role, s.length) for s in after.spans]
    kept = [s for s in whole.spans if s.modality == "text" or not (s.hidden or (s.noised and s.length == 0))]
    kept = kept[kept.index(next(s for s in kept if s.start > 5)) :][: len(after.spans)]
    assert told == [(s.modality, s.role, s.length) for s in kept]
    where = np.concatenate([np.arange(s.start, s.stop) for s in kept])
    np.testing.assert_array_equal(after.positions, whole.positions[where])
    if name != "quickstart_transfusion":  # there, training shows later tokens the noised image
        np.testing.assert_array_equal(towers_of(after.spans, config.model), towers_of(whole.spans, config.model)[where])
    # the same prompt, written anew for a branch of guidance, stands at the same places
    anew = assemble([spell_prompt([Part("text", np.arange(4))], config.model, row.parts)], config.model)
    seen = [s for s in whole.spans if not s.hidden][: len(anew.spans)]
    where = np.concatenate([np.arange(s.start, s.stop) for s in seen])
    assert [(s.modality, s.role) for s in anew.spans] == [(s.modality, s.role) for s in seen]
    np.testing.assert_array_equal(anew.positions, whole.positions[where])
    assert layout.closing["image"] in anew.ids


@pytest.mark.parametrize("axes", [["time"], ["time", "row", "column"]], ids=len)
def test_made_ids_take_the_way_of_generation(axes):
    """Ids under way, and ids that stand in the prompt, are told apart where towers go by role."""
    config = small("bagel_like").model
    image = ModalityConfig(vocab_size=16, tower="understanding", tower_by_role={"generation": "generation"})
    config = dataclasses.replace(config, modalities={**config.modalities, "image": image}, position_axes=axes)
    generator = Generator(MixtureOfTransformers(config).requires_grad_(False), grids={"image": GRID})
    generator.add(Request([Part("image", np.arange(6), grid=GRID)], "image"))
    seen = []
    forward = generator.model.forward
    generator.model.forward = lambda batch, cache=None: seen.append(batch.routing.sizes) or forward(batch, cache)
    while generator.rows:
        generator.step()
    towers = list(config.towers)
    assert towers == ["understanding", "generation"]
    assert seen[0] == [1 + 8 + 1, 0] and seen[1:] == [[0, 1]] * 5


def test_the_rule():
    assert {role_of(given=False, loss=loss) for loss in (1.0, 0.5)} == {"generation"}
    assert {role_of(given=True), role_of(given=False, loss=0.0)} == {"understanding"}
