"""LoRA: nothing changes at first, the changes alone train, and merged, exported or read by peft they are the same."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from helpers.fake_data import scene_like, write_folder
from helpers.models import model_config, random_documents
from helpers.training import config_for, stopped_at
from safetensors.torch import load_file, save_file

from plait.batch.assemble import pack
from plait.cli import main
from plait.common.errors import CheckpointError, ConfigError
from plait.common.units import count
from plait.config.file import from_dict, to_dict
from plait.config.model import LoraConfig, TowerConfig
from plait.config.run import RunConfig
from plait.model.adapters import attach, merge_adapter
from plait.model.init_from import start_model, start_towers, zero_outputs
from plait.model.lora import linears_in
from plait.model.mot import MixtureOfTransformers
from plait.model.precision import shorten
from plait.model.pretrained import load_config, load_pretrained
from plait.train import checkpoint
from plait.train.export import export
from plait.train.startup import lora_facts
from plait.train.trainer import Trainer

TOWERS = {"image": TowerConfig(lora=LoraConfig(rank=3, alpha=5.0)),
          "mel": TowerConfig(lora=LoraConfig(rank=2, alpha=9.0, targets=("o", "ffn")))}  # fmt: skip


def build(towers: dict[str, TowerConfig] | None = None, **settings) -> MixtureOfTransformers:
    config = model_config(mel=True)
    config = dataclasses.replace(config, towers=dict(config.towers) | (towers or {}), **settings)
    return MixtureOfTransformers(config).double()


def learned(model: MixtureOfTransformers) -> MixtureOfTransformers:
    """Return the model with random changes."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part, parameter in model.weights():
            if part.trait.adapts:
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype) * 0.3)
    return model


def batch_of(model: MixtureOfTransformers):
    return pack(random_documents(np.random.default_rng(0), 5, mel=True), model.config)


def hidden(model: torch.nn.Module, batch) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(model(batch))


def test_at_first_nothing_changes_and_merged_is_the_same(rng):
    plain, model = build(), build(towers=TOWERS)
    batch = batch_of(plain)
    torch.testing.assert_close(hidden(model, batch), hidden(plain, batch), rtol=0, atol=0)
    changed = hidden(learned(model), batch)
    assert (changed - hidden(plain, batch)).abs().max() > 0.01
    model.merge_lora()
    torch.testing.assert_close(hidden(model, batch), changed, rtol=0, atol=1e-12)
    assert model.config == plain.config and model.state_dict().keys() == plain.state_dict().keys()
    assert model.parts.keys() == plain.parts.keys()


@pytest.mark.parametrize(
    ("towers", "settings", "sentence"),
    [
        ({"image": TowerConfig(lora=LoraConfig(), ffn="moe")}, {}, "a list without 'ffn': experts have no LoRA"),
        (TOWERS, {"untied": ["qkv", "ffn"]}, "a list without 'o', which towers share in layer 0"),
    ],
)
def test_what_has_no_lora(towers, settings, sentence):
    with pytest.raises(ConfigError, match=r"model\.towers\.image\.lora\.targets") as error:
        build(towers=towers, **settings)
    assert sentence in str(error.value)


def test_outputs_of_zero_leave_the_changes_as_they_begin():
    model = build(towers=TOWERS)
    before = {name: p.clone() for name, p in model.named_parameters() if ".lora." in name}
    zero_outputs(model, ["image"])
    assert not model.blocks[0].o["image"].weight.any() and not model.blocks[1].ffn["image"].down.weight.any()
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in before.items())


# -- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A saved model, and the data that it was trained on."""
    data = write_folder(tmp_path_factory.mktemp("data"), {"train": [scene_like(i) for i in range(60)]})
    out = tmp_path_factory.mktemp("run")
    Trainer(config_for(data, out, steps=2)).run()
    return export(out, tmp_path_factory.mktemp("base") / "base"), data


def lora_run(base, out, **train) -> RunConfig:
    folder, data = base
    settings = {"steps": 6, "init_from": str(folder), "ema": 0.5, "learning_rate": 0.01}
    values = to_dict(config_for(data, out, **settings | train))
    values["model"]["towers"]["image"]["lora"] = {"rank": 4, "alpha": 8.0}
    for tower in values["model"]["towers"].values():
        del tower["frozen"]
    return from_dict(RunConfig, values)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """The folder of a run with LoRA on the image tower."""
    out = tmp_path_factory.mktemp("lora")
    Trainer(lora_run(base, out)).run()
    return out


def newest(run):
    return checkpoint.find(run / "checkpoints")[-1]


def test_the_changes_alone_train(base, run):
    before, after = load_file(base[0] / "model.safetensors"), load_file(newest(run) / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    added = after.keys() - before.keys()
    assert added and all(".image." in name and ".lora." in name for name in added)
    assert all(after[name].any() for name in added)
    size = count(sum(after[name].numel() for name in added))
    assert lora_facts(load_pretrained(newest(run))) == f"image: {size} parameters (rank 4, on qkv, o, ffn)"


def test_stopped_and_gone_on_with(base, run, tmp_path):
    stopped_at(Trainer(lora_run(base, tmp_path)), 4)
    Trainer(lora_run(base, tmp_path)).run()
    for weights in ("model.safetensors", "ema.safetensors"):
        a, b = load_file(newest(run) / weights), load_file(newest(tmp_path) / weights)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_else_trains(base, tmp_path):
    config = lora_run(base, tmp_path)
    assert config.frozen_towers == ["text", "image", "speech"]
    values = to_dict(config)
    values["model"]["towers"]["speech"]["frozen"] = False
    assert from_dict(RunConfig, values).frozen_towers == ["text", "image"]
    values["model"]["towers"]["image"]["frozen"] = True
    with pytest.raises(ConfigError, match=r"image\.frozen: True is not allowed, it must be left out beside lora"):
        from_dict(RunConfig, values)
    for tower in values["model"]["towers"].values():
        tower |= {"frozen": True, "lora": None}
    with pytest.raises(ConfigError, match="towers of which one at least trains"):
        from_dict(RunConfig, values)


def test_a_run_with_lora_is_no_start_before_it_is_merged(run):
    config = load_config(newest(run))
    for start in (lambda m: start_model(m, newest(run)), lambda m: start_towers(m, {"image": str(newest(run))})):
        with pytest.raises(CheckpointError, match=r"has LoRA on tower 'image'.*run `plait export RUN --merge`"):
            start(MixtureOfTransformers(config))


# -- export, and adapters -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("adapters") / "style", adapter=True, averages=True)


def as_it_is(run) -> MixtureOfTransformers:
    return load_pretrained(newest(run), weights="ema.safetensors").double()


def test_merged_in_the_file(run, tmp_path, capsys):
    assert main(["export", str(run), "--weights-only", "--ema", "--merge", "--out", str(tmp_path / "merged")]) == 0
    merged, model = load_pretrained(tmp_path / "merged").double(), as_it_is(run)
    assert not any(part.trait.adapts for part in merged.parts.values())
    batch = pack([scene_like(3)], model.config)
    difference = hidden(merged, batch) - hidden(model, batch)
    assert difference.abs().max() < 1e-6  # the file is in float32
    assert main(["export", str(run), "--ema", "--merge", "--adapter"]) == 2


def test_an_adapter_of_its_own(base, run, adapter):
    assert sorted(p.name for p in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    model, own = load_pretrained(base[0]).double(), as_it_is(run)
    batch = pack([scene_like(3)], model.config)
    assert (hidden(model, batch) - hidden(own, batch)).abs().max() > 1e-4
    merge_adapter(model, adapter)
    torch.testing.assert_close(hidden(model, batch), hidden(own, batch), rtol=0, atol=1e-9)


def test_matrices_with_lora_are_rounded_once(run):
    """Read in bfloat16, what LoRA learned is merged first: the matrices are those of the merged model, rounded."""
    model = load_pretrained(newest(run), weights="ema.safetensors", dtype=torch.bfloat16)
    merged = load_pretrained(newest(run), weights="ema.safetensors")
    merged.merge_lora()
    shorten(merged)
    assert not lora_facts(model) and model.state_dict().keys() == merged.state_dict().keys()
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in merged.state_dict().items())


def test_a_run_without_lora_has_none(base, tmp_path):
    Trainer(config_for(base[1], tmp_path, steps=1)).run()
    with pytest.raises(ConfigError, match=r"--adapter is not allowed.*has no LoRA"):
        export(tmp_path, adapter=True)


def test_peft_reads_what_plait_wrote(base, run, adapter):
    peft = pytest.importorskip("peft")
    own = as_it_is(run)
    theirs = peft.PeftModel.from_pretrained(load_pretrained(base[0]), adapter).double()
    batch = pack([scene_like(3)], own.config)
    torch.testing.assert_close(hidden(theirs, batch), hidden(own, batch), rtol=0, atol=1e-9)


def test_plait_reads_what_peft_wrote(base, tmp_path):
    """Trained by peft on the plain model: gradients reach the changes, and all of the rest is frozen."""
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=3, lora_alpha=6, use_rslora=True, rank_pattern={"o.image": 2},
                              target_modules=["qkv.image", "o.image", "ffn.text.up"])  # fmt: skip
    theirs = peft.get_peft_model(load_pretrained(base[0]).double(), options)
    batch = pack([scene_like(3)], theirs.base_model.model.config)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        torch.cat(theirs(batch)).square().mean().backward()
        optimizer.step()
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_pretrained(base[0]).double()
    before = hidden(model, batch)
    merge_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(hidden(model, batch), hidden(theirs, batch), rtol=0, atol=1e-9)
    assert (hidden(model, batch) - before).abs().max() > 1e-6


def test_adapters_that_do_not_fit(base, adapter, tmp_path):
    model = load_pretrained(base[0])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = load_file(adapter / "adapter_model.safetensors")
    options = json.loads((adapter / "adapter_config.json").read_text())
    first = next(name for name in tensors if "lora_A" in name and ".qkv." in name)

    def refused(sentence: str, *, options=options, tensors=tensors, files=("adapter_config.json",)) -> None:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if "adapter_config.json" in files:
            (folder / "adapter_config.json").write_text(json.dumps(options))
        if tensors is not None:
            save_file(tensors, folder / "adapter_model.safetensors")
        if "pickle" in files:
            (folder / "adapter_model.bin").write_bytes(b"x")
        with pytest.raises(CheckpointError) as error:
            merge_adapter(model, folder)
        assert sentence in str(error.value) and "\n" not in str(error.value), error.value

    refused("holds no adapter_config.json, so it is no adapter", files=())
    refused("has peft_type 'IA3', it must be 'LORA': plain LoRA", options=options | {"peft_type": "IA3"})
    refused("has use_dora True, it must be False", options=options | {"use_dora": True})
    refused("has init_lora_weights 'pissa', it must be True", options=options | {"init_lora_weights": "pissa"})
    refused("has r 'four', it must be a number above 0", options=options | {"r": "four"})
    refused("has alpha_pattern {'o': 'x'}, it must be numbers", options=options | {"alpha_pattern": {"o": "x"}})
    refused("has rank_pattern [2], it must be numbers", options=options | {"rank_pattern": [2]})
    refused("there is no file", tensors=None)
    refused("holds a pickle (adapter_model.bin)", tensors=None, files=("adapter_config.json", "pickle"))
    refused("has lora_B of 'blocks.0.qkv.image' alone", tensors={n: t for n, t in tensors.items() if n != first})
    refused("this model needs [4, 16]", tensors=tensors | {first: torch.zeros(4, 8)})
    refused("is no matrix of LoRA", tensors=tensors | {"base_model.model.norm.weight": torch.zeros(2)})
    refused("changes nothing", tensors={})
    other = {name.replace(".image", ".video"): t for name, t in tensors.items()}
    refused("or of other towers than text, image, speech", tensors=other)
    truncated = tmp_path / "truncated"
    shutil.copytree(adapter, truncated)
    truncate(truncated / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        merge_adapter(model, truncated)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_beside_a_model_the_blocks_alone_are_changed(base, adapter, tmp_path):
    """A head is read without its module; merged, it is changed as anything else."""
    model = load_pretrained(base[0])
    shutil.copytree(adapter, tmp_path / "head")
    outputs, inputs = next(iter(model.head_weights().values())).weight.shape
    halves = {"A": torch.ones(4, inputs), "B": torch.ones(outputs, 4)}
    name = next(n for n in linears_in(model) if n.startswith("head."))
    tensors = {f"base_model.model.{name}.lora_{side}.weight": t for side, t in halves.items()}
    save_file(tensors, tmp_path / "head" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=f"changes '{name}', which stands outside of the blocks"):
        attach(model, {"head": tmp_path / "head"})
    before = model.state_dict()[f"{name}.weight"].clone()
    merge_adapter(model, tmp_path / "head")
    assert (model.state_dict()[f"{name}.weight"] - before).abs().min() > 1


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
