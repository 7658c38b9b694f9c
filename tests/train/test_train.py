"""The training loop: exact resume, accumulation, skipped steps, checkpoints that refuse what does not fit."""

import copy
import dataclasses
import itertools
import json
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from helpers.fake_data import run_config, scene_like, write_folder
from helpers.models import model_config, random_documents, random_part
from helpers.training import config_for, stopped_at

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.cli import main
from plait.common.errors import CheckpointError, ConfigError, ResourceError
from plait.common.progress import Progress
from plait.config.file import to_dict
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.config.run import TrainConfig
from plait.config.run_records import TowerSettings
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import load_pretrained, save_pretrained
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt
from plait.train import checkpoint
from plait.train import trainer as trainer_module
from plait.train.diagnostics import Measures
from plait.train.gradients import add_gradients
from plait.train.metrics import read_metrics
from plait.train.optim import learning_rate, make_optimizer
from plait.train.trainer import Trainer, pick_device


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    splits = {"train": [scene_like(i) for i in range(150)], "seen": [scene_like(i, seed=1) for i in range(20)]}
    return write_folder(tmp_path_factory.mktemp("data"), splits)


def losses(out) -> list:
    return [
        {k: v for k, v in row.items() if k.startswith(("loss/", "val_loss/", "grad_norm"))}
        for row in read_metrics(out / "metrics.jsonl")
    ]


@pytest.mark.parametrize("log_every", [1, 5])  # the stops lie between two rows, too
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_equals_uninterrupted_bit_for_bit(optimizer, log_every, folder, tmp_path):
    def trainer_in(out: str) -> Trainer:
        config = config_for(folder, tmp_path / out, optimizer=optimizer, log_every=log_every)
        config.modalities["text"].final_loss_weight = 3.0  # of the share of the run that is done
        return Trainer(config)

    whole = trainer_in("whole").run()
    for stop_at in (4, 6):
        stopped_at(trainer_in("cut"), stop_at)
    resumed = trainer_in("cut").run()
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert trainer_in("cut").finished


def test_a_row_holds_all_steps_since_the_last_one_whatever_lies_between(folder, tmp_path, monkeypatch):
    steps, stepped = [], Measures.stepped

    def counted(self, sums, counts, *others, **named):
        steps.append((float(sums[0]), counts[0]))
        stepped(self, sums, counts, *others, **named)

    monkeypatch.setattr(Measures, "stepped", counted)
    Trainer(config_for(folder, tmp_path, log_every=4, validate_every=2)).run()
    rows = {row["step"]: row["loss/text"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss/text" in row}
    assert sorted(rows) == [1, 4, 8]
    for first, last in ((0, 1), (1, 4), (4, 8)):
        total, count = map(sum, zip(*steps[first:last], strict=True))
        assert rows[last] == pytest.approx(total / count, rel=1e-6)


def test_a_damaged_checkpoint_is_passed_over(folder, tmp_path):
    Trainer(config_for(folder, tmp_path)).run()
    found = checkpoint.find(tmp_path / "checkpoints")
    assert [p.name for p in found] == ["step-00000006", "step-00000008"]
    weights = found[-1] / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert checkpoint.latest(tmp_path / "checkpoints") == found[0]
    assert Trainer(config_for(folder, tmp_path)).state.step == 6


def test_another_architecture_is_refused(folder, tmp_path):
    Trainer(config_for(folder, tmp_path, steps=1)).run()
    config = config_for(folder, tmp_path, steps=2)
    config.model = dataclasses.replace(config.model, num_layers=2)
    with pytest.raises(ConfigError, match=r"^model\.num_layers: 2 differs from 1, which the run .* made with; take"):
        Trainer(config)


@pytest.mark.parametrize("normalize", ["all_tokens", "per_modality"])
def test_accumulated_equals_whole(folder, tmp_path, rng, normalize):
    config = config_for(folder, tmp_path, normalize=normalize)
    documents = random_documents(rng, 12)
    results = []
    for cuts in (1, 3):
        trainer = Trainer(config)
        trainer.model = MixtureOfTransformers(trainer.config.model).double()
        trainer.optimizer = make_optimizer(trainer.model, config.train)
        size = len(documents) // cuts
        batches = [pack(documents[i : i + size], trainer.config.model) for i in range(0, len(documents), size)]
        sums, counts, norm = trainer.update(batches)
        results.append((sums, counts, norm, trainer.model.state_dict()))
    torch.testing.assert_close(results[0][2:], results[1][2:], rtol=0, atol=1e-9)
    assert results[0][1] == results[1][1]


def with_latents(folder, out, **train):
    config = config_for(folder, out, **train)
    mel = ModalityConfig(
        objective="diffusion", attention="bidirectional", latent_channels=3, patch_size=1, later_sees="clean_copy"
    )
    model = ModelConfig({**config.model.modalities, "mel": mel}, width=16, num_layers=1, num_heads=2)
    return dataclasses.replace(config, model=model)


def latent_documents(rng, roles) -> list[Document]:
    """Return documents of a text, latents of one role, and a text."""
    documents = []
    for i, role in enumerate(roles):
        parts = [random_part(rng, name) for name in ("text", "mel", "text")]
        parts[1].role = role
        documents.append(Document(parts, index=i))
    return documents


@pytest.mark.parametrize("normalize", ["all_tokens", "per_modality"])
def test_spans_that_are_not_noised_count_nothing(folder, tmp_path, rng, normalize):
    trainer = Trainer(with_latents(folder, tmp_path, normalize=normalize))
    documents = latent_documents(rng, ["understanding"] * 3)
    batch = corrupt(pack(documents, trainer.config.model), trainer.config.diffusion, 0)
    mel, tokens = trainer.config.model.layout.names.index("mel"), sum(batch.counts)
    assert len(batch.latents["mel"].lengths) == 3 and batch.counts[mel] == 0
    assert trainer.loss_factors(batch.counts)[mel] == 0
    assert trainer.loss_factors(batch.counts)[0] == pytest.approx(
        1 / tokens if normalize == "all_tokens" else 1 / batch.counts[0]
    )
    head = trainer.model.latent_out["mel"]["mel"]
    gradients = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (gradients.extend(p.grad for p in head.parameters()), step())
    sums, counts, norm = trainer.update([batch])
    assert float(sums[mel]) == counts[mel] == 0 and torch.isfinite(sums).all() and torch.isfinite(norm)
    assert len(gradients) == len(list(head.parameters())) and not any(
        g.any() for g in gradients
    )  # it takes part, with zeros
    assert int(trainer._bad_steps) == 0


def test_accumulated_equals_whole_where_some_spans_are_noised(folder, tmp_path, rng):
    roles = ["understanding", "understanding", "generation", "understanding", "generation", "generation"]
    documents, results = latent_documents(rng, roles), []
    for cuts in (1, 3):
        trainer = Trainer(with_latents(folder, tmp_path))
        trainer.model.double()
        trainer.optimizer = make_optimizer(trainer.model, trainer.config.train)
        size = len(documents) // cuts
        batches = [pack(documents[i : i + size], trainer.config.model) for i in range(0, len(documents), size)]
        batches = [corrupt(b, trainer.config.diffusion, 0) for b in batches]
        results.append((trainer.update(batches), trainer.model.state_dict()))
    ((sums, counts, norm), weights), ((sums_cut, counts_cut, norm_cut), weights_cut) = results
    assert counts == counts_cut and counts[-1] == 3
    torch.testing.assert_close((sums, norm, weights), (sums_cut, norm_cut, weights_cut), rtol=0, atol=1e-9)


@pytest.mark.parametrize("lacking", [{0}, {1}, {0, 1}])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_batches_side_by_side_may_lack_a_modality(folder, tmp_path, rng, lacking, optimizer):
    """The gradients of a batch without latents are zeros that autograd spreads over one number."""
    documents = latent_documents(rng, ["generation"] * 4)
    for i in (i for b in lacking for i in (2 * b, 2 * b + 1)):
        documents[i] = Document([p for p in documents[i].parts if p.modality != "mel"], index=i)
    results = []
    for threads in (1, 2):
        trainer = Trainer(with_latents(folder, tmp_path, optimizer=optimizer))
        trainer._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        batches = [pack(documents[i : i + 2], trainer.config.model) for i in (0, 2)]
        batches = [corrupt(b, trainer.config.diffusion, 0) for b in batches]
        for _ in range(2):
            sums, _, norm = trainer.update(batches)
        results.append((sums, norm, trainer.model.state_dict()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_gradients_that_share_memory_are_added_apart():
    """Both addends of a sum get one and the same gradient, and one-element parameters that of the whole sum."""
    a, b, c, d = (torch.nn.Parameter(torch.zeros(n)) for n in (3, 3, 1, 1))

    def loss(batch):
        return ((a + b) * batch).sum() + (c + d).sum() * batch, torch.zeros(1)

    with ThreadPoolExecutor(2) as pool:
        add_gradients([a, b, c, d], [2.0, 3.0], loss, pool)
    assert [p.grad.tolist() for p in (a, b, c, d)] == [[5.0] * 3, [5.0] * 3, [5.0], [5.0]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_latents_that_are_not_finite_stop_the_run_with_one_sentence(tmp_path, capsys, num_workers):
    documents = [
        Document([Part("text", np.arange(5)), Part("depth", latents=np.ones((4, 3), np.float32), grid=(2, 2))])
        for _ in range(30)
    ]
    documents[17].parts[1].latents[2, 1] = np.nan
    write_folder(tmp_path / "data", {"train": documents})
    assert train_by_command(tmp_path, ("text", "depth"), num_workers) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plait: ")]
    assert "document 17" in line and "'depth'" in line and "NaN" in line


def test_what_fails_in_a_thread_of_the_loader_stops_the_run_with_one_sentence(tmp_path, capsys):
    write_folder(tmp_path / "data", {"train": [scene_like(i) for i in range(30)]})
    shard = tmp_path / "data/shards/train-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert train_by_command(tmp_path, ("text", "image"), 2) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plait: ")]
    assert "train-00000.safetensors" in line
    assert not [t for t in threading.enumerate() if t.name.startswith("plait-loader")]


def train_by_command(folder, names, num_workers) -> int:
    """Run plait train on ``folder``/data and return its exit code."""
    config = run_config(folder / "data", names, batch_tokens=64, num_workers=num_workers)
    config.out = str(folder / "run")
    config.train = TrainConfig(steps=40, device="cpu")
    (folder / "run.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    return main(["train", str(folder / "run.yaml")])


def test_all_tokens_is_one_mean(folder, tmp_path):
    trainer = Trainer(config_for(folder, tmp_path))
    assert trainer.loss_factors([6.0, 2.0, 0.0]) == [1 / 8, 1 / 8, 1 / 8]
    trainer.config.train.normalize = "per_modality"
    assert trainer.loss_factors([6.0, 2.0, 0.0]) == [1 / 6, 1 / 2, 0.0]


def test_the_weight_of_a_loss_goes_to_its_last_value_in_a_straight_line(folder, tmp_path):
    trainer = Trainer(config_for(folder, tmp_path))
    trainer.config.modalities["text"].loss_weight, trainer.config.modalities["text"].final_loss_weight = 1.0, 5.0
    shares, steps = {}, trainer.config.train.steps
    for share in (0.0, 0.5, 1.0):
        trainer.state.step = round(steps * share)
        shares[share] = trainer.loss_factors([6.0, 2.0, 0.0])
    assert shares == {0.0: [1 / 8, 1 / 8, 1 / 8], 0.5: [3 / 8, 1 / 8, 1 / 8], 1.0: [5 / 8, 1 / 8, 1 / 8]}


def test_a_step_that_is_not_finite_changes_nothing(folder, tmp_path, rng):
    trainer = Trainer(config_for(folder, tmp_path))
    batch = pack(random_documents(rng, 4), trainer.config.model)
    trainer.update([batch])
    before = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict()["state"]))
    trainer.loss_factors = lambda counts: [float("nan")] * 3
    trainer.update([batch])
    after = (trainer.model.state_dict(), trainer.optimizer.state_dict()["state"])
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert int(trainer._bad_steps) == 1


def test_too_many_bad_steps_stop_the_run(folder, tmp_path):
    trainer = Trainer(config_for(folder, tmp_path, max_bad_steps=2))
    trainer.loss_factors = lambda counts: [float("inf")] * 3
    with pytest.raises(Exception, match="max_bad_steps is 2"):
        trainer.run()


def test_saved_model_loads_and_misfits_are_named(tmp_path, rng):
    model = MixtureOfTransformers(model_config(mel=True))
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    values = json.loads((tmp_path / "config.json").read_text())
    values["model"]["num_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="weights are missing"):
        load_pretrained(tmp_path)
    for key, value, said in (
        ("quantization_config", {}, r"unknown name 'quantization_config', allowed: .*model_type"),
        ("model", None, "holds no mapping 'model', which says what the weights are"),
        ("schema_version", 2, 'it must be 3: put all of it but "architecture" under "model"'),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values | {key: value}))
        with pytest.raises(CheckpointError, match=said):
            load_pretrained(tmp_path)
    values["architecture"] = "Llama"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="'Llama', it must be"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    values["architecture"] = "MixtureOfTransformers"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_pretrained(tmp_path)


def test_frozen_towers_and_rates_per_tower(rng):
    config = model_config()
    model = MixtureOfTransformers(config)
    towers = {"text": TowerSettings(frozen=True), "image": TowerSettings(learning_rate_scale=0.1)}
    optimizer = make_optimizer(model, TrainConfig(), towers)
    batch = pack(random_documents(rng, 4), config)
    before = copy.deepcopy(model.state_dict())
    loss_sums(model, model(batch), batch).sum().backward()
    optimizer.step()
    name = "blocks.0.ffn.{}.up.weight"
    assert torch.equal(before[name.format("text")], model.get_parameter(name.format("text")))
    assert not torch.equal(before[name.format("image")], model.get_parameter(name.format("image")))
    scales = {g["scale"] for g in optimizer.param_groups}
    assert scales == {1.0, 0.1}
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert id(model.embed["shared"].weight) not in decayed
    assert id(model.head["shared"].weight) not in decayed, "decay would move the rows of frozen ids"
    plain = make_optimizer(MixtureOfTransformers(config), TrainConfig())
    assert sum(g["weight_decay"] > 0 for g in plain.param_groups) == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rows_of_frozen_ids_stay(accumulate, folder, tmp_path):
    """A shared table keeps the rows of ids that only frozen towers carry; those of other ids and delimiters train."""
    config = config_for(folder, tmp_path, weight_decay=0.5, accumulate=accumulate, ema=0.9)
    config.towers = config.towers | {"text": TowerSettings(frozen=True)}
    trainer = Trainer(config)
    before = copy.deepcopy(trainer.model.state_dict())
    layout = trainer.run().config.layout
    fixed = len(layout.ids("text")) + len(layout.added)
    for name in ("embed.shared.weight", "head.shared.weight"):
        with trainer.averaged():
            average = trainer.model.get_parameter(name)[:fixed].clone()
        after = trainer.model.get_parameter(name)
        assert torch.equal(after[:fixed], before[name][:fixed]) and torch.equal(average, before[name][:fixed])
        rows = [*layout.ids("image"), layout.opening["image"], layout.closing["image"]]
        assert not (after == before[name]).all(dim=1)[rows].any()


def test_learning_rate():
    config = TrainConfig(learning_rate=1.0, warmup_steps=4, schedule="linear", final_learning_rate=0.2)
    assert [learning_rate(config, s, 0.0) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(config, 10, 0.5) == pytest.approx(0.6)
    assert learning_rate(config, 10, 2.0) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["tpu9", "cuda:99", "mps"])
def test_absent_devices(name):
    with pytest.raises(ResourceError, match=r"train\.device"):
        pick_device(name)


def test_fitted_to_minutes(folder, tmp_path, monkeypatch):
    """A step takes a quarter of a second by this clock, so three seconds are 12 steps, whatever `steps` says."""
    ticks = itertools.count()
    monkeypatch.setattr(trainer_module, "time", types.SimpleNamespace(monotonic=lambda: next(ticks) / 4))
    config = config_for(folder, tmp_path, minutes=0.05, steps=1)
    trainer = Trainer(config, Progress())
    trainer.run()
    assert trainer.state.seconds == 3.0 and trainer.state.step == 12


def test_batches_side_by_side_equal_one_after_another(folder, tmp_path):
    """The same numbers whichever thread is done first, bit for bit, and those of one batch after the other."""
    config = config_for(folder, tmp_path / "a", steps=4)
    config.train.accumulate = 3
    found = []
    for threads in (1, 3, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            trainer = Trainer(dataclasses.replace(config, out=str(tmp_path / f"run-{len(found)}")))
        finally:
            torch.set_num_threads(before)
        assert (trainer._pool is not None) == (threads > 1)
        found.append({n: p.detach().clone() for n, p in trainer.run().named_parameters()})
    torch.testing.assert_close(found[1], found[2], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_frozen_tower_computes_what_it_computed(folder, tmp_path):
    """The biases of its experts decide where tokens go, and move without a gradient."""
    config = config_for(folder, tmp_path, steps=2, validate_every=2)
    towers = {name: TowerConfig(ffn="moe", num_experts=3, ffn_width=24) for name in config.model.towers}
    config.model = dataclasses.replace(config.model, towers=towers)
    config.towers["text"].frozen = True
    trainer = Trainer(config)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.run()
    for name, tensor in trainer.model.state_dict().items():
        part = trainer.model.parts[name]
        if part.tower == "text" or (part.tower == "image" and part.place.inner == "expert_bias"):
            assert torch.equal(tensor, before[name]) == (part.tower == "text"), name
