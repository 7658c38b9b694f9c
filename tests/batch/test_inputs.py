"""Features that are read and never made: given images stand there as a vision encoder sees them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers.encoders import CHANNELS, FEATURES, image, interleaved, model_config, text
from helpers.fake_data import write_folder

from plait.batch.assemble import Run, assemble, pack, spell, spell_prompt
from plait.batch.documents import Document, Part, as_given
from plait.batch.spans import tower_of
from plait.common.errors import ConfigError, DataError
from plait.common.randomness import generator
from plait.config.file import from_dict, to_dict
from plait.config.generation import DiffusionConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig
from plait.config.run import DataConfig, RunConfig
from plait.config.run_records import ModalitySettings
from plait.data.loader import Loader
from plait.data.sources import AS_WRITTEN, TaskSource, open_sources, resolve_vocabulary
from plait.data.targets import check_targets
from plait.evaluate.forced_choice import continuation_scores
from plait.generate import Request, generate
from plait.generate.decoding import guided
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt
from plait.objectives.samplers import Denoiser
from plait.plan.flops import operations

FLOW, GRID = DiffusionConfig(process="flow"), (2, 3)


@pytest.fixture(params=[False, True], ids=["instead", "beside"])
def beside(request) -> bool:
    return request.param


def build(config: ModelConfig) -> MixtureOfTransformers:
    model = MixtureOfTransformers(config).double().requires_grad_(False)
    for p in (*model.head.parameters(), *model.latent_out.parameters()):
        p.mul_(20)  # sharper than at the start, so that it matters what was given
    return model


def doubled(batch):
    for group in batch.latents.values():
        group.values, group.timesteps = group.values.double(), group.timesteps.double()
    return batch


def in_sequence(model: MixtureOfTransformers, batch) -> torch.Tensor:
    return torch.cat(model(batch)).index_select(0, batch.routing.to_sequence)


def spans_of(config: ModelConfig, parts: list[Part]) -> list[tuple]:
    spans = pack([Document(parts)], config).spans
    return [(s.modality, s.role, s.length, s.noised, tower_of(s, config)) for s in spans if s.modality != "text"]


def test_the_role_says_what_an_image_is(rng, beside):
    """Given: features, after clean latents where both stay. Made: noised latents, and a clean copy for what follows."""
    config, (given, made) = model_config(beside=beside), (image(rng, "understanding"), image(rng))
    seen = [("vit", "understanding", 4, False, "understanding")]
    latents = [("image", "understanding", 6, False, "generation")] if beside else []
    noised, copy = ("image", "generation", 6, True, "generation"), ("image", "generation", 6, False, "generation")
    assert spans_of(config, [given, made, text(rng)]) == [*latents, *seen, noised, copy]
    assert spans_of(config, [text(rng), made]) == [noised]
    (prompt,) = [spell_prompt([made], config)]  # whoever made it: in a prompt it is given
    assert [r.modality for r in prompt if r.modality != "text"] == ["image"] * beside + ["vit"]


def test_features_are_never_targets(rng, beside):
    """Neither they nor their delimiters, whatever a caller's part says; the text after them is."""
    config = model_config(beside=beside)
    bare = Part("vit", latents=np.ones((4, FEATURES), np.float32))  # by itself: role and loss are those of a made part
    batch = pack([Document([bare, text(rng)]), Document([image(rng, "understanding"), text(rng)])], config)
    opening, closing = config.layout.opening["vit"], config.layout.closing["vit"]
    assert not {opening, closing} & set(batch.targets.ids.tolist())
    assert batch.counts[config.layout.names.index("vit")] == 0
    assert {s.role for s in batch.spans if s.modality == "vit"} == {"understanding"}
    # ids of texts and <eos>; the opening of a given image counts as it does everywhere
    assert batch.counts[0] == 2 * (4 + 1) + beside


def test_packed_equals_unpacked(rng, beside):
    config = model_config(beside=beside)
    model, documents = build(config), [interleaved(rng, i) for i in range(12)]
    together = doubled(corrupt(pack(documents, config), FLOW, 0))
    alone = [doubled(corrupt(pack([d], config), FLOW, 0)) for d in documents]
    expected = torch.cat([in_sequence(model, batch) for batch in alone])
    torch.testing.assert_close(in_sequence(model, together), expected, rtol=0, atol=1e-10)
    sums = sum(loss_sums(model, model(batch), batch) for batch in alone)
    torch.testing.assert_close(loss_sums(model, model(together), together), sums, rtol=0, atol=1e-8)
    assert sums[config.layout.names.index("vit")] == 0


def test_a_prompt_is_what_training_writes(rng, beside):
    """The same runs, positions and towers, for every prompt of texts and images."""
    config = model_config(beside=beside)
    for _ in range(20):
        given = as_given(interleaved(rng).parts)
        trained = pack([Document([*given, text(rng)])], config)
        prompt = assemble([spell_prompt(given, config)], config)
        n = prompt.num_tokens
        np.testing.assert_array_equal(prompt.ids, trained.ids[:n])
        np.testing.assert_array_equal(prompt.positions, trained.positions[:n])
        before = [s for s in trained.spans if s.stop <= n]
        assert [(s.modality, s.role, s.start, s.length) for s in prompt.spans] == [
            (s.modality, s.role, s.start, s.length) for s in before
        ]
        if "vit" in prompt.latents:
            np.testing.assert_array_equal(prompt.latents["vit"].values, trained.latents["vit"].values)


def test_cached_equals_uncached_for_text_after_images(rng, beside):
    config = model_config(beside=beside)
    model = build(config)
    for _ in range(6):
        prompt, ids = as_given(interleaved(rng).parts), rng.integers(0, 20, 5)
        cached = continuation_scores(model, prompt, [ids])[0]
        whole = assemble([[*spell_prompt(prompt, config), Run("text", ids, role="generation")]], config)
        rows = [torch.arange(h.shape[0]) for h in model(whole)]
        logits = model.logits(model(whole), rows).index_select(0, whole.routing.to_sequence).log_softmax(-1)
        before = range(whole.num_tokens - 6, whole.num_tokens - 1)
        np.testing.assert_allclose(cached, sum(float(logits[i, t]) for i, t in zip(before, ids)), atol=1e-10)


def predict(model, parts, latents, level) -> torch.Tensor:
    """One forward pass over all that was given and the latents, nothing cached."""
    config = model.config
    run = Run("image", None, latents.numpy(), GRID, "generation", noised=True, hidden=True)
    opening = Run("text", np.array([config.layout.opening["image"]]))
    batch = assemble([[*spell(Document(parts), config, close=False, noised=False), opening, run]], config)
    group = batch.latents["image"]
    start = sum(group.lengths[:-1])
    group.values = group.values.double().index_copy(0, torch.arange(start, start + len(latents)), latents)
    group.timesteps = torch.zeros(len(group.values), dtype=torch.float64)
    group.timesteps[start:] = level
    return model.predict_latents(model(batch), batch, "image")[start:]


def test_an_edited_image_cached_and_guided_equals_by_hand(rng, beside):
    config = model_config(beside=beside)
    model, s = build(config), SamplingConfig(steps=4, guidance=3.0, media_guidance=1.5)
    prompts = [[image(rng), text(rng)], [text(rng), image(rng), text(rng), image(rng)], [text(rng)]]
    requests = [Request(p, "image", {"image": s}, number=i) for i, p in enumerate(prompts)]
    made = generate(model, requests, grids={"image": GRID}, diffusion=FLOW, max_rows=2)
    for request, result in zip(requests, made, strict=True):
        draw = generator(request.seed, "first noise", item=request.number, position=1)
        latents = torch.from_numpy(draw.standard_normal((math.prod(GRID), CHANNELS)))
        denoiser = Denoiser(FLOW, s.sampler, s.steps)
        media = [p for p in request.prompt if p.modality != "text"]
        for level in denoiser.levels:
            full, some, none = (predict(model, p, latents, level) for p in (request.prompt, media, []))
            some = some if media else none
            latents = denoiser.step(guided(full, some, none, s.guidance, s.media_guidance), latents)
        np.testing.assert_allclose(result.parts[0].latents, latents, atol=1e-6)


def test_later_text_depends_on_the_features_and_on_latents_where_both_stay(rng, beside):
    config = model_config(beside=beside)
    model, given = build(config), image(rng, "understanding")

    def logits(part: Part) -> torch.Tensor:
        batch = doubled(corrupt(pack([Document([part, Part("text", np.arange(3))])], config), FLOW, 0))
        return model.logits(model(batch), batch.targets.rows)

    other = dataclasses.replace(given, features=dataclasses.replace(given.features, latents=given.features.latents + 1))
    assert (logits(other) != logits(given)).any()
    other = dataclasses.replace(given, latents=given.latents + 1)
    assert bool((logits(other) != logits(given)).any()) == beside


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_every_parameter_takes_part_with_and_without_features(rng, network):
    config = model_config(network=network, beside=True)
    model = MixtureOfTransformers(config)
    names = [name for name, _ in model.named_parameters()]
    assert "vit" not in model.latent_out and not any("vit" in name and "timestep" in name for name in names)
    for document in ([text(rng)], [image(rng, "understanding"), text(rng), image(rng)]):
        model.zero_grad(set_to_none=True)
        batch = corrupt(pack([Document(document)], config), FLOW, 0)
        loss_sums(model, model(batch), batch).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    moved = {n for n, p in model.named_parameters() if p.grad.any()}
    assert {name for name in names if name.startswith("latent_in.vit")} <= moved
    told = operations(config, batch)["understanding"]["latents"]
    assert told == 2 * 4 * (FEATURES * 32 + (network == "mlp") * 32 * 32)


# -- prepared data ---------------------------------------------------------------------------------------------------

RECORDS = {
    "text": {"codec": "fake_text", "key": "text", "vocab_size": 20, "latent_channels": 0},
    "image": {"codec": "fake_depth", "key": "image", "vocab_size": 0, "latent_channels": CHANNELS},
    "vit": {"codec": "features", "key": "image", "reads": "image", "reads_only": True, "vocab_size": 0,
            "latent_channels": FEATURES},
}  # fmt: skip
for _record in RECORDS.values():
    _record |= {"default_grid": [], "fingerprint": _record["codec"]}
TASKS = {"text,image": 1.0, "image,text": 1.0, "image,text,image": 1.0, "text,image,text": 1.0, "as_written": 1.0}


def written(rng, i: int) -> Document:
    document = interleaved(rng, i)
    for part in document.parts:
        part.role, part.loss = "generation", 1.0
        if part.modality == "image" and rng.random() < 0.3:
            part.loss = 0.0
    return document


@pytest.fixture
def folder(rng, tmp_path):
    splits = {"train": [written(rng, i) for i in range(60)], "seen": [written(rng, i) for i in range(9)]}
    return write_folder(tmp_path / "data", splits, modalities=RECORDS), splits


def run_config(folder, *, beside=False, tasks=TASKS, **data) -> RunConfig:
    data = {"batch_tokens": 128, "num_workers": 0, "tasks": tasks} | data
    return RunConfig(model_config(beside=beside), data=DataConfig(str(folder), **data))


def test_features_lie_behind_their_parts_and_come_back(folder):
    path, splits = folder
    (source,) = open_sources(run_config(path), "train")
    for i, document in enumerate(splits["train"]):
        again = source.document(i)
        assert [p.modality for p in again.parts] == [p.modality for p in document.parts]
        for a, b in zip(again.stored, document.stored, strict=True):
            np.testing.assert_array_equal(a.latents if a.ids is None else a.ids, b.latents if b.ids is None else b.ids)
            assert (a.modality, a.grid) == (b.modality, b.grid)
        table = source.parts([i])
        assert [source.names[m] for m in table.modality] == [p.modality for p in document.parts]
        assert table.features.tolist() == [0 if p.features is None else len(p.features) for p in document.parts]


@pytest.mark.parametrize("later_sees", ["clean_copy", "noised"])
def test_lengths_are_those_of_the_tokens(folder, beside, later_sees):
    path, _ = folder
    (opened,) = open_sources(run_config(path), "train")
    model = model_config(beside=beside, later_sees=later_sees)
    source = TaskSource(opened, model, TASKS, drop_condition=0.2, drop_host=0.2)
    for epoch in range(3):
        numbers = np.arange(len(source))
        draw = source.draw(numbers, epoch)
        for i, task, dropped, length in zip(numbers, draw.task, draw.dropped, draw.lengths, strict=True):
            document = source.document(i, task, dropped)
            assert length == sum(len(run) for run in spell(document, model))
            sizes = source.sizes(i, task, dropped)
            everything = [(k, 0, size.length) for k, size in enumerate(sizes)]
            assert TaskSource.piece_length(everything, sizes) == length


@pytest.mark.parametrize("too_long", ["split", "truncate", "skip"])
def test_long_documents_are_cut_around_images(folder, beside, too_long):
    path, _ = folder
    config = run_config(path, beside=beside, too_long=too_long, max_document_tokens=24)
    batches, seen = iter(Loader(config)), set()
    for _ in range(20):
        batch, state = next(batches)
        assert max(batch.lengths) <= 24
        seen |= {s.modality for s in batch.spans}
    assert seen == {"text", "image", "vit"} and state["counts"]["tokens"] > 0


def test_a_given_image_without_latents_teaches_nothing(rng, tmp_path):
    """Transfusion learns given images too, as far as their latents stand there; `check_targets` knows."""
    documents = [Document([image(rng), text(rng)])]
    path, said = write_folder(tmp_path / "data", {"train": documents}, modalities=RECORDS), []
    for beside in (False, True):
        data = DataConfig(str(path), batch_tokens=128, num_workers=0, tasks={"image,text": 1.0}, drop_condition=0.0)
        config = RunConfig(model_config(beside=beside, later_sees="noised"), data=data)
        said.append(check_targets(resolve_vocabulary(config)))
        batch, _ = next(iter(Loader(config)))
        assert bool(batch.counts[1]) == beside
    assert said == [["image: none of data.tasks predicts it, so that it gets no target"], []]


def test_data_without_the_features_are_named(rng, tmp_path):
    records = {name: record for name, record in RECORDS.items() if name != "vit"}
    documents = [Document([dataclasses.replace(image(rng), features=None), text(rng)])]
    path = write_folder(tmp_path / "data", {"train": documents}, modalities=records)
    with pytest.raises(DataError, match=r"has image without vit, which reads it; prepare it again$"):
        next(iter(Loader(run_config(path))))


def test_data_of_other_features_are_named(folder):
    path, _ = folder
    for settings, sentence in (
        ({"reads": ""}, r"^model\.modalities\.vit\.reads: '' .* 'image', with which the data was prepared"),
        ({"reads": "", "objective": "diffusion", "patch_network": "linear"}, r"vit\.reads"),
    ):
        config = run_config(path)
        vit = dataclasses.replace(config.model.modalities["vit"], **settings)
        model = dataclasses.replace(config.model, modalities={**config.model.modalities, "vit": vit})
        with pytest.raises(ConfigError, match=sentence):
            resolve_vocabulary(RunConfig(model, data=config.data))


# -- settings --------------------------------------------------------------------------------------------------------

BASE = {
    "model": {"modalities": {
        "text": {"vocab_size": 10},
        "image": {"objective": "diffusion", "latent_channels": 3},
        "vit": {"objective": "input", "latent_channels": 5, "reads": "image"},
    }}
}  # fmt: skip


@pytest.mark.parametrize(
    ("modality", "changes", "sentence"),
    [
        ("vit", {"loss_weight": 0.5}, r"^model\.modalities\.vit\.loss_weight: 0\.5 .* it is read and never learned$"),
        ("vit", {"final_loss_weight": 1.0}, r"^model\.modalities\.vit\.final_loss_weight: 1\.0 .* never learned$"),
        ("vit", {"key": "photo"}, r"^model\.modalities\.vit\.key: 'photo' .* its parts are those of 'image'$"),
        ("vit", {"reads": "imag"}, r"^model\.modalities\.vit\.reads: .* allowed: image; did you mean 'image'\?$"),
        ("vit", {"reads": "text"}, r"^model\.modalities\.vit\.reads: unknown name 'text', allowed: image$"),
        ("vit", {"reads": "", "beside": True}, r"^model\.modalities\.vit\.beside: True .* false without reads$"),
        ("vit", {"later_sees": "nothing"}, r"vit\.later_sees: .* 'noised' where the objective is input$"),
        ("vit", {"tower_by_role": {"generation": "image"}}, r"vit\.tower_by_role: .* where the objective is input$"),
        ("vit", {"patch_network": "unet"}, r"vit\.patch_network: 'unet' .* linear, conv or mlp"),
        ("image", {"patch_network": "mlp"}, r"image\.patch_network: 'mlp' .* linear, unet or conv"),
        ("image", {"reads": "vit"}, r"image\.reads: 'vit' is not allowed, it must be '' where the objective is diffus"),
        ("text", {"objective": "input"}, r"text\.objective: 'input' .* next_token for the first modality"),
        ("dino", {"objective": "input", "reads": "image"}, r"dino\.reads: 'image' .* no other one reads \(vit does\)$"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(modality, changes, sentence):
    modalities = {name: dict(record) for name, record in BASE["model"]["modalities"].items()}
    modalities[modality] = modalities.get(modality, {}) | changes
    with pytest.raises(ConfigError, match=sentence) as error:
        from_dict(RunConfig, {"model": {"modalities": modalities}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"data": {"tasks": {"vit,text": 1}}}, r"^data\.tasks \('vit,text'\): 'vit' .* 'image', whose given parts"),
        ({"generate": {"sampling": {"vit": {}}}}, r"^generate: unknown name 'vit', allowed: image, text$"),
        ({"generate": {"grids": {"vit": [2]}}}, r"^generate: unknown name 'vit'"),
        ({"diffusion": {"by_modality": {"vit": {}}}}, r"^diffusion\.by_modality: unknown name 'vit', allowed: image$"),
    ],
)  # fmt: skip
def test_what_is_never_made_cannot_be_asked_for(section, sentence):
    with pytest.raises(ConfigError, match=sentence):
        from_dict(RunConfig, BASE | section)


def test_features_by_themselves_are_given_and_never_predicted():
    modalities = BASE["model"]["modalities"] | {"vit": {"objective": "input", "latent_channels": 5}}
    with pytest.raises(ConfigError, match=r"^data\.tasks \('text,vit'\): 'vit' .* given, not predicted"):
        from_dict(RunConfig, {"model": {"modalities": modalities}, "data": {"tasks": {"text,vit": 1}}})
    config = from_dict(RunConfig, {"model": {"modalities": modalities}, "data": {"tasks": {"vit,text": 1}}})
    assert not config.modalities["vit"].learns and config.modalities["text"].learns
    assert from_dict(RunConfig, to_dict(config)) == config


def test_an_output_that_is_read_only_is_refused(rng):
    model = build(model_config())
    with pytest.raises(
        ConfigError, match=r"^generate\.output: 'vit' .* one of text, image: it is read and never made$"
    ):
        generate(model, [Request([text(rng)], "vit")], grids={"image": GRID})
    free = Request([text(rng)], None, {"image": SamplingConfig(steps=2)}, {"text": 4}, max_spans=2)
    (result,) = generate(model, [free], grids={"image": GRID, "vit": (2, 2)}, diffusion=FLOW)
    assert "vit" not in {p.modality for p in result.parts}  # it never opens one by itself


def test_a_given_image_without_features_is_named(rng):
    config = model_config()
    bare = dataclasses.replace(image(rng, "understanding"), features=None)
    for parts in ([bare], [dataclasses.replace(bare, features=text(rng))]):
        with pytest.raises(ConfigError, match=r"features of 'image': .* a plait\.Part of 'vit', as Pipeline\.encode"):
            pack([Document(parts)], config)
    wrong = dataclasses.replace(bare, features=Part("vit", latents=np.zeros((4, 2), np.float32)))
    with pytest.raises(ConfigError, match=r"latents of 'vit': \[4, 2\] .* \[tokens, 5\]"):
        pack([Document([wrong])], config)
    assert pack([Document([dataclasses.replace(bare, role="generation")])], config).num_tokens  # made: none are needed


def test_ids_are_read_as_features_too(rng):
    """Images of ids, whose given ones a vision encoder sees (Janus, arXiv 2410.13848)."""
    modalities = model_config().modalities | {"image": ModalityConfig(vocab_size=9, tower="generation")}
    config = model_config(position_axes=("time",))
    config = dataclasses.replace(config, modalities=modalities)
    model, features = build(config), image(rng).features
    given = Part("image", np.arange(6), grid=GRID, role="understanding", features=features)
    batch = pack([Document([given, text(rng)])], config)
    assert [s.modality for s in batch.spans if s.modality != "text"] == ["vit"]
    (made,) = generate(model, [Request([given, text(rng)], "image")], grids={"image": GRID})
    assert len(made.parts[0].ids) == 6


def test_the_settings_of_a_run_keep_their_loss_weights():
    config = from_dict(RunConfig, BASE)
    assert config.modalities["vit"] == ModalitySettings(loss_weight=0.0)
    assert AS_WRITTEN == -1 and config.model.readers == {"image": "vit"}
