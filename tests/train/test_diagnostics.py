"""What a run measures: norms by tower, operations against the peak, shares and loads, the row and the bar's text."""

import dataclasses
import json
import sys

import pytest
import torch
from helpers.fake_data import run_config, scene_like, write_folder
from helpers.models import Forbidden, model_config, random_documents

from plait.batch.assemble import pack
from plait.common.progress import Progress
from plait.config.model import TowerConfig
from plait.config.run import TrainConfig
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums
from plait.plan.flops import total_operations
from plait.train import diagnostics as module
from plait.train.diagnostics import Measures, expert_load, peak_flops, progress_text
from plait.train.metrics import read_metrics
from plait.train.trainer import Trainer

CPU = torch.device("cpu")


def with_gradients(config, rng):
    """Return a model after a backward pass, and its batch."""
    model = MixtureOfTransformers(config)
    batch = pack(random_documents(rng, 8), config)
    loss_sums(model, model(batch), batch).sum().backward()
    return model, batch


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_a_towers_norm_is_that_of_its_gradient_before_clipping(rng, clip):
    model, _ = with_gradients(model_config(untied=["ffn", "norm"]), rng)
    expected: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        tower = next((t for t in ("text", "image", "speech") if f".{t}." in name), "shared")
        expected[tower] = expected.get(tower, 0.0) + float(parameter.grad.double().square().sum())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    measures = Measures(model, TrainConfig(clip=clip), CPU)
    with Forbidden() as watch:
        measures.look(model, norm)
    assert watch.count and not watch.seen, "nothing waits for the device"
    row = measures.row()
    found = {name.partition("/")[2]: value for name, value in row.items() if name.startswith("grad_norm/")}
    assert found == pytest.approx({tower: square**0.5 for tower, square in expected.items()}, rel=1e-5)
    assert sum(value**2 for value in found.values()) ** 0.5 == pytest.approx(float(norm), rel=1e-5)


def test_the_share_of_the_peak_is_that_of_the_formula(rng, monkeypatch):
    model, batch = with_gradients(model_config(), rng)
    operations = 3 * sum(total_operations(model.config, batch).values())
    now = [10.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    measures = Measures(model, TrainConfig(peak_tflops=2e-6), CPU)
    for _ in range(2):
        measures.read(batch, 0.25)
        measures.stepped(torch.ones(3), [4.0, 0.0, 2.0], torch.tensor(7.0), tokens=50)
    now[0] = 12.0
    row = measures.row()
    assert row["tflops"] == pytest.approx(operations / 1e12) and row["mfu"] == pytest.approx(operations / 2e6)
    assert (row["tokens_per_second"], row["loader_share"], row["grad_norm"]) == (50.0, 0.25, 7.0)
    assert (row["loss/text"], row["loss/speech"]) == (0.25, 0.5) and "loss/image" not in row
    sizes = dict(zip(model.config.towers, batch.routing.sizes, strict=True))
    assert row["token_share/image"] == pytest.approx(sizes["image"] / batch.num_tokens)
    with measures.paused():
        now[0] = 112.0  # a validation
    begun = json.loads(json.dumps(measures.state()))
    assert measures.row() == row
    now[0] = 1000.0
    resumed = Measures(model, TrainConfig(peak_tflops=2e-6), CPU)
    resumed.restart(begun)
    assert resumed.row() == row | {"grad_norm": None}
    measures.restart()
    assert measures.row()["token_share/image"] is None


def test_a_peak_that_is_not_known_is_not_invented(rng):
    model, batch = with_gradients(model_config(), rng)
    measures = Measures(model, TrainConfig(), CPU)
    measures.read(batch, 0.0)
    assert peak_flops(TrainConfig(precision="bfloat16"), CPU) == 0.0
    row = measures.row()
    assert row["mfu"] is None and row["tflops"] > 0


@pytest.mark.parametrize(("name", "expected"), [("NVIDIA H100 80GB HBM3", 989e12), ("Some Other GPU", 0.0)])
def test_known_gpus_have_their_data_sheets_peak(monkeypatch, name, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(TrainConfig(precision="bfloat16"), torch.device("cuda")) == expected
    assert peak_flops(TrainConfig(precision="float32"), torch.device("cuda")) == 0.0
    assert peak_flops(TrainConfig(peak_tflops=5), torch.device("cuda")) == 5e12


def test_ranks_that_share_a_batch_count_their_own_part(rng):
    model, batch = with_gradients(model_config(), rng)
    alone, shared = (Measures(model, TrainConfig(), CPU) for _ in range(2))
    alone.read(batch, 0.0)
    model.ranks = dataclasses.replace(model.ranks, tensor=2)
    shared.read(batch, 0.0)
    assert shared._operations == pytest.approx(alone._operations / 2)


def test_the_load_of_experts_is_the_busiest_over_the_mean():
    experts = TowerConfig(ffn="moe", num_experts=4, top_k=1)
    config = model_config(towers={"image": "text", "speech": "text"})
    config = dataclasses.replace(config, towers={"text": experts})
    model = MixtureOfTransformers(config)
    for block, load in zip(model.blocks, ([1, 1, 1, 1], [3, 1, 0, 0]), strict=True):
        block.ffn["text"].tokens_per_expert.copy_(torch.tensor(load, dtype=torch.float32))
    assert {name: float(load) for name, load in expert_load(model).items()} == {"expert_load/text": 2.0}
    assert expert_load(MixtureOfTransformers(model_config())) == {}


def test_the_bar_says_step_losses_and_speed():
    row = {"loss/text": 3.2149, "loss/image": 4.5, "grad_norm": 1.0, "tokens_per_second": 12_345.0, "mfu": 0.417}
    assert progress_text(row, 1240) == "step 1,240  text 3.215  image 4.500  12.3k tokens/s  42% of peak"
    assert progress_text({"tokens_per_second": 812.4, "mfu": None}, 3) == "step 3  812 tokens/s"


class Lines(Progress):
    """A progress that keeps what bars say."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def _open(self, title, total):
        bar = super()._open(title, total)
        show = bar._show
        bar._show = lambda: (self.texts.append(bar.text), show())
        return bar


def test_a_run_writes_all_of_it_and_only_looks_where_a_row_follows(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data", {"train": [scene_like(i) for i in range(120)]})
    config = run_config(folder, tasks={"text,image": 1.0})
    config.out = str(tmp_path / "run")
    config.train = TrainConfig(steps=5, log_every=2, validate_every=100, warmup_steps=1, device="cpu")
    looked = []
    look = Measures.look
    monkeypatch.setattr(Measures, "look", lambda self, *a: (looked.append(1), look(self, *a))[1])
    progress = Lines()
    Trainer(config, progress).run()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 4, 5] and len(looked) == 4
    for row in rows:
        parts = [row[f"grad_norm/{tower}"] for tower in ("text", "image", "speech", "shared")]
        assert sum(p**2 for p in parts) ** 0.5 == pytest.approx(row["grad_norm"], rel=1e-4)
        assert sum(row[f"token_share/{tower}"] for tower in ("text", "image", "speech")) == pytest.approx(1.0)
        assert row["tflops"] > 0 and row["mfu"] is None and 0 <= row["loader_share"] <= 1 and row["memory_gb"] > 0
        assert {"loss/text", "loss/image", "learning_rate", "tokens_per_second", "skipped_steps"} <= set(row)
    assert any(text.startswith("step 4  text ") and text.endswith("tokens/s") for text in progress.texts)


def test_counting_operations_costs_little(rng):
    """A few Python calls for each span of a batch, however many tokens it has."""
    config = model_config()
    batch = pack(random_documents(rng, 60), config)
    measures = Measures(MixtureOfTransformers(config), TrainConfig(), CPU)
    measures.read(batch, 0.0)
    calls = [0]

    def count(frame, event, argument):
        calls[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        measures.read(batch, 0.0)
    finally:
        sys.setprofile(None)
    assert calls[0] < 20 * len(batch.spans) + 500
