"""plait plan: sizes, operations, layouts, messages and times against counts by hand; the command and its mistakes."""

import io
import json

import numpy as np
import pytest
import yaml
from helpers.models import model_config, random_documents
from rich.console import Console

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.cli import main
from plait.common.errors import ConfigError
from plait.common.units import count
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.config.rank_layout import Layout
from plait.config.run import DataConfig, RunConfig, TrainConfig
from plait.config.run_records import ModalitySettings
from plait.model.mot import MixtureOfTransformers
from plait.objectives.diffusion import corrupt
from plait.plan.estimate import GB, Machines, choose, make_plan, step_seconds
from plait.plan.flops import operations, pairs_by_tower, total_operations, visible_pairs
from plait.plan.layouts import Traffic, possible_layouts, sizes, traffic
from plait.plan.memory import cache_bytes, rank_memory
from plait.plan.show import MOST_LAYOUTS, as_json, show
from plait.plan.trace import Pass, of_rank
from plait.plan.workload import documents_of_a_batch, known_sizes

NOTHING = Pass(kept=0, casts=0, loss=0, backward=0, tensor=0, context=0)


def run_of(**model) -> RunConfig:
    train = TrainConfig(precision="bfloat16", accumulate=1)
    data = DataConfig(path="none", batch_tokens=256, max_document_tokens=128)
    return RunConfig(model=model_config(num_heads=4, num_kv_heads=4, head_dim=4, **model), train=train, data=data)


@pytest.fixture(scope="module")
def plan():
    return make_plan(run_of(), Machines(gpus=4, memory=1.0, node=2))


# -- operations and sizes


def test_operations_by_tower_are_those_of_its_tokens(rng):
    config = model_config(towers={"speech": "image"})
    batch = pack(random_documents(rng, 12), config)
    found = operations(config, batch)
    assert list(found) == ["text", "image"]
    for n, parts in zip(batch.routing.sizes, found.values(), strict=True):
        assert parts["o"] == config.num_layers * 2 * n * 16 * 16
    pairs = pairs_by_tower(config, batch)
    assert sum(pairs.values()) == visible_pairs(batch) and min(pairs.values()) > 0
    for part, total in total_operations(config, batch).items():
        assert total == sum(parts[part] for parts in found.values())


def test_attention_counts_for_the_tower_that_asks():
    config = model_config(towers={"speech": "text"})
    batch = pack([Document([Part("text", ids=[1, 2]), Part("image", ids=[3, 4, 5])])], config)
    # <bos> 2 <image> | 3 of the image | </image> <eos>
    assert pairs_by_tower(config, batch) == {"text": 1 + 2 + 3 + 4 + 8 + 9, "image": 5 + 6 + 7}


@pytest.mark.parametrize("network", ["unet", "conv"])
def test_operations_of_convolutions_are_counted(network):
    record = ModalityConfig(
        objective="diffusion", attention="bidirectional", latent_channels=16, patch_size=2, patch_network=network
    )
    config = ModelConfig({"text": ModalityConfig(vocab_size=9), "image": record}, width=32, num_layers=1, num_heads=2)
    found = []
    for items in (1, 2):
        parts = [Part("image", latents=np.zeros((16, 16), np.float32), grid=(4, 4)) for _ in range(items)]
        batch = corrupt(pack([Document(parts)], config), RunConfig(model=config).diffusion, 0)
        found.append(operations(config, batch)["image"]["latents"])
    assert found[1] == 2 * found[0] > 2 * 16 * 32 * 32


def test_sizes_are_the_models():
    model = model_config(towers={"speech": "image"})
    whole = MixtureOfTransformers(model)
    found = sizes(model)
    assert found.total == found.trained == sum(p.numel() for p in whole.parameters())
    assert found.block * model.num_layers == sum(p.numel() for p in whole.blocks.parameters())
    config = ModelConfig(model.modalities, width=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_width=24,
                         towers={"text": TowerConfig(), "image": TowerConfig()})  # fmt: skip
    own = sum(p.numel() for part, p in MixtureOfTransformers(config).weights() if part.tower == "text")
    assert sizes(config, frozen=["text"]).trained == sizes(config).total - own


def test_a_tensor_rank_has_a_part_of_every_matrix():
    model = run_of().model
    whole, half = sizes(model), sizes(of_rank(model, 2))
    norms = model.num_layers * 3 * (2 * 16 + 2 * 4)
    assert half.block * model.num_layers == (whole.block * model.num_layers - norms) / 2 + norms


# -- layouts


def test_layouts_use_every_rank_and_cut_whole_heads():
    model = run_of().model
    found = list(possible_layouts(model, 8, 4))
    assert len(found) == len(set(found)) and all(layout.ranks == 8 for layout in found)
    assert all(4 % (layout.tensor * layout.context) == 0 for layout in found)
    assert Layout(1, 8, 1, 1) in found and Layout(2, 4, 1, 1) in found and Layout(8, 1, 1, 1) in found
    assert Layout(2, 1, 4, 1) in found and Layout(1, 2, 2, 2) in found
    assert max(layout.tensor for layout in possible_layouts(model, 8, 2)) == 2, "tensor ranks share a machine"
    odd = run_of(ffn_width=27).model
    assert {layout.tensor for layout in possible_layouts(odd, 8, 8)} == {1}


def test_messages_by_hand():
    part = sizes(run_of().model)
    blocks, n = 2 * part.block, part.total
    sent = traffic(Layout(shard=4), part, NOTHING, num_layers=2, batches=3, width=2)
    assert sent == Traffic(shard=3 * 3 / 4 * (2 * 2 * blocks + 4 * (n - blocks) + 4 * n))
    sent = traffic(Layout(replicate=2, shard=4), part, NOTHING, num_layers=2, batches=1, width=2)
    assert sent.replicate == 2 * 1 / 2 * 4 * n / 4, "a ring sends each sum twice"
    once = Pass(kept=0, casts=0, loss=0, backward=0, tensor=5, context=7)
    sent = traffic(Layout(tensor=2, context=2), part, once, num_layers=2, batches=3, width=2)
    assert (sent.tensor, sent.context) == (15, 21) and sent.shard > 0, "context ranks shard the weights"


def test_time_by_hand():
    config, machines = run_of(), Machines(gpus=8, node=4, peak=1.0, mfu=0.5, node_bandwidth=100.0, bandwidth=10.0)
    layout, sent = Layout(replicate=2, shard=2, tensor=2), Traffic(shard=2e9, replicate=1e9, tensor=50e9)
    computing = 3 * 4e11 / 2 / 0.5e12
    assert step_seconds(config, machines, layout, sent, 4e11) == pytest.approx(max(computing, 2 / 100 + 1 / 10) + 0.5)
    slow = Traffic(shard=200e9, replicate=40e9)
    assert step_seconds(config, machines, layout, slow, 4e11) == pytest.approx(2 + 4)


def test_the_simpler_of_layouts_as_fast_is_taken(plan):
    machines = Machines(gpus=4, memory=1.0)
    best, reason = choose(plan.options, machines)
    assert best.layout.tensor == best.layout.context == 1 and "fits in the usable 0.9 GB" in reason
    fast = [o for o in plan.options if o.layout.tensor == 1 and o.layout.context == 1]
    assert len(fast) > 1 and best.traffic.total == min(o.traffic.total for o in fast)
    assert choose([], machines)[0] is None


def test_a_step_of_few_tokens_leaves_layouts_whose_ranks_all_have_a_batch():
    found = make_plan(run_of(), Machines(gpus=4, node=4), tokens=512).options
    assert found and all(o.layout.data <= 2 and o.tokens == 512 for o in found)
    assert {o.batches for o in found} == {1, 2}


def test_the_configs_global_batch_holds():
    config = run_of()
    config.train.global_batch_tokens = 1024
    assert {o.tokens for o in make_plan(config, Machines(gpus=2, node=2)).options} == {1024}
    assert make_plan(config, Machines(gpus=2, node=2), tokens=1000).best is None, "no multiple of a batch"


def test_experts_that_choose_share_no_context():
    chooses = TowerConfig(ffn="moe", moe_routing="expert_choice")
    model = ModelConfig({"text": ModalityConfig(vocab_size=9)}, width=16, num_heads=4, towers={"text": chooses})
    assert {layout.context for layout in possible_layouts(model, 4, 4)} == {1}


def test_muon_keeps_one_number_for_a_blocks_matrix():
    config, layout = run_of(), Layout()
    part = sizes(config.model)
    adamw = rank_memory(config, layout, part, NOTHING, batches=1, width=2).optimizer
    config.train.optimizer = "muon"
    muon = rank_memory(config, layout, part, NOTHING, batches=1, width=2).optimizer
    norms = config.model.num_layers * 3 * (2 * 16 + 2 * 4)
    assert (adamw, adamw - muon) == (8 * part.trained, 4 * (part.block * config.model.num_layers - norms))


def test_what_does_not_fit_comes_last(plan):
    middle = sorted(o.memory.peak for o in plan.options)[len(plan.options) // 2]
    found = make_plan(run_of(), Machines(gpus=4, node=2, memory=middle / GB / 0.9))
    fits = [o.fits for o in found.options]
    assert fits == sorted(fits, reverse=True) and len(set(fits)) == 2 and found.best.fits


# -- documents


def test_made_up_documents_fill_a_batch_in_the_shares_asked_for():
    config, grids = known_sizes(run_of())
    documents, text = documents_of_a_batch(config, grids, mix={"text": 1, "image": 3}, document_tokens=128)
    batch = pack(documents, config.model)
    assert 200 < batch.num_tokens <= 256 and "text and image" in text
    assert batch.routing.sizes[1] / batch.num_tokens == pytest.approx(0.75, abs=0.06) and batch.routing.sizes[2] == 0
    assert [d.parts[-1].modality for d in documents] == ["image", "text"], "each is predicted in turn"


def test_continuous_items_have_the_extent_of_their_codec():
    config, grids = known_sizes(run_of(mel=True))
    documents, _ = documents_of_a_batch(config, {"mel": (4, 5)}, mix={"text": 1, "mel": 1})
    items = [p for d in documents for p in d.parts if p.modality == "mel"]
    assert grids == {} and {p.grid for p in items} == {(4, 5)} and {p.latents.shape for p in items} == {(20, 3)}


def test_sizes_are_asked_of_the_codecs_before_there_is_data():
    image = ModalityConfig(objective="diffusion", attention="bidirectional")
    model = ModelConfig({"text": ModalityConfig(), "image": image}, width=16, num_heads=2)
    codecs = {
        "text": ModalitySettings("text_bpe", {"vocab_size": 300}),
        "image": ModalitySettings("image_pixels", {"size": 32, "patch_size": 8}),
    }
    config, grids = known_sizes(RunConfig(model=model, modalities=codecs, out="none"))
    assert config.model.modalities["text"].vocab_size == 300 and config.model.layout.size > 300
    assert config.model.modalities["image"].latent_channels == 192 and grids == {"image": (4, 4)}
    with pytest.raises(ConfigError, match=r"modalities\.text: 'of unknown size' .* a vocab_size"):
        known_sizes(RunConfig(model=ModelConfig({"text": ModalityConfig()}), out="none"))


def test_the_cache_by_hand():
    config = run_of()
    config.generate.precision = "bfloat16"
    assert cache_bytes(config) == 2 * 2 * 4 * 4 * 2


# -- the command


CONFIG = {
    "name": "small",
    "model": {"width": 16, "num_heads": 2, "num_layers": 2,
              "modalities": {"text": {"vocab_size": 20}, "image": {"vocab_size": 12}}},
    "data": {"batch_tokens": 128, "path": "none"},
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    return str(tmp_path / "small.yaml")


def test_the_command_says_what_to_write_into_the_config(path, capsys):
    assert main(["plan", path, "--gpus", "2", "--peak", "10", "--train.checkpoint_activations", "full"]) == 0
    out = capsys.readouterr().out
    layout = "parallel: {replicate: 2, shard: 1"
    for words in ("small  on 2 GPUs of 80 GB", "blocks recomputed", layout, "10 TFLOP/s", "--node-bandwidth"):
        assert words in out
    assert max(map(len, out.splitlines())) <= 150


def test_json_has_everything(path, capsys):
    assert main(["plan", path, "--gpus", "2", "--mix", "text=1,image=3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommended"] in found["layouts"] and found["assumptions"]["gpus"] == 2
    assert found["towers"]["image"]["share"] > found["towers"]["text"]["share"]
    model = ModelConfig(
        {n: ModalityConfig(**m) for n, m in CONFIG["model"]["modalities"].items()}, width=16, num_heads=2, num_layers=2
    )
    assert found["parameters"]["total"] == sizes(model).total


def test_nothing_fits_is_an_exit_code_and_a_reason(path, capsys):
    assert main(["plan", path, "--gpus", "2", "--memory", "0.000001"]) == 5
    assert "no layout fits: the least that a GPU needs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mix", "txt=1"], "--mix: unknown name 'txt', allowed: image, text; did you mean 'text'?"),
        (["--mfu", "0"], "--mfu: 0.0 is not allowed, it must be above 0"),
        (["--gpus", "0"], "--gpus: 0 is not allowed, it must be at least 1"),
        (["--train.step", "5"], "did you mean 'steps'?"),
    ],
)
def test_mistakes_get_one_sentence(path, arguments, sentence, capsys):
    assert main(["plan", path, *arguments]) == 2
    message = capsys.readouterr().err
    assert sentence in message and message.count("\n") == 1


def test_a_narrow_terminal_gets_the_plan_too(plan):
    out = io.StringIO()
    show(plan, Console(file=out, width=80))
    assert "recommended" in out.getvalue() and "✗" in out.getvalue()
    assert len(as_json(plan)["layouts"]) == len(plan.options)
    rows = io.StringIO()
    show(plan, Console(file=rows, width=150), everything=True)
    assert (
        f"{min(len(plan.options), MOST_LAYOUTS)} of" in out.getvalue() and f"{len(plan.options)} of" in rows.getvalue()
    )


def test_numbers_read_well():
    assert [count(n) for n in (12, 4054, 443e6, 999.9e6, 7.236e9, 1.5e12)] == [
        "12", "4.05k", "443M", "1B", "7.24B", "1.5T"]  # fmt: skip
