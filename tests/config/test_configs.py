"""Configs: every shipped one builds, every wrong field is named in one sentence."""

import copy
import dataclasses
import math
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from helpers.models import model_config, with_modality

from plait.common.errors import ConfigError
from plait.config.file import from_dict, load, to_dict
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig, default_ffn_width
from plait.config.run import RunConfig
from plait.config.run_records import RECORDS, ModalitySettings
from plait.config.shipped import FOLDERS, config_path, describe_settings
from plait.model.mot import MixtureOfTransformers

SHIPPED = sorted(p for folder in FOLDERS for p in folder.glob("*.yaml"))
VOCABULARY = 1000


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_builds(path):
    config = load(path).model
    for name, m in config.modalities.items():  # known once the data is prepared
        known = {"vocab_size": m.vocab_size or VOCABULARY} if m.objective == "next_token" else {
            "latent_channels": m.latent_channels or 8}  # fmt: skip
        config = with_modality(config, name, **known)
    with torch.device("meta"):
        model = MixtureOfTransformers(config)
    assert model.num_parameters() > 0
    head = path.read_text().split("name:")[0]
    assert "command" in head and "hardware" in head


def test_there_are_shipped_configs():
    assert "quickstart" in [p.stem for p in SHIPPED]


BASE = {"model": {"modalities": {"text": {"vocab_size": 10}, "image": {"vocab_size": 10}}}}


def laid(**changes) -> dict:
    values = yaml.safe_load(yaml.safe_dump(BASE))
    for key, value in changes.items():
        at = values
        *parents, last = key.split("__")
        for parent in parents:
            at = at.setdefault(parent, {})
        at[last] = value
    return values


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"trian": {}}, r"^trian: unknown name 'trian', allowed: .*; did you mean 'train'\?$"),
        ({"train__learning_rat": 1}, r"^train\.learning_rat: .* did you mean 'learning_rate'\?$"),
        ({"train__steps": "many"}, r"^train\.steps: 'many' is not allowed, it must be a whole number$"),
        ({"train__learning_rate": -1.0}, r"^train\.learning_rate: -1\.0 is not allowed, it must be above 0$"),
        ({"train__weight_decay": float("nan")}, r"^train\.weight_decay: nan .* must be a finite number, 0 or more$"),
        ({"train__validate_every": 0}, r"^train\.validate_every: 0 is not allowed, it must be at least 1$"),
        ({"train__betas": [0.9, 1.0]}, r"^train\.betas\[1\]: 1\.0 is not allowed, it must be in \[0, 1\)$"),
        ({"train__betas": [0.9]}, r"^train\.betas: \[0\.9\] is not allowed, it must be two numbers in \[0, 1\)$"),
        ({"train__steps": 0}, r"^train\.steps: 0 is not allowed, it must be at least 1$"),
        ({"prepare__concepts": "some"}, r"^prepare\.concepts: 'some' is not allowed, it must be a number or all$"),
        ({"prepare__concepts": 1.5}, r"^prepare\.concepts: 1\.5 is not allowed, it must be a whole number$"),
        ({"train__steps": True}, r"^train\.steps: True is not allowed"),
        ({"evaluate": {"pictures": 3}}, r"^evaluate\.pictures: this setting is now evaluate\.images, rename it"),
        ({"train__schedule": "cosin"}, r"^train\.schedule: unknown name 'cosin', .* did you mean 'cosine'\?$"),
        ({"model__num_kv_heads": 3}, r"^model\.num_kv_heads: 3 .* a divisor of num_heads \(8\)$"),
        ({"model__untied": ["qvk"]}, r"^model\.untied: unknown name 'qvk', .* did you mean 'qkv'\?$"),
        ({"model__untied": {"2-9": ["ffn"]}}, r"^model\.untied: '2-9' is not allowed, .* within 0-3$"),
        ({"model__modalities__image__tower": "imag", "model__towers": {"text": {}, "image": {}}},
         r"did you mean 'image'\?$"),
        ({"model__towers": {"text": {}, "image": {}, "smell": {}}}, r"^model\.towers: 'smell' .*none uses it"),
        ({"model__modalities__image__attention": "bidirectional"}, r"attention: 'bidirectional' .* would leak"),
        ({"model__modalities": {}}, r"^model\.modalities: \{\} is not allowed"),
        ({"model__towers": {"text": {}, "image": {"width": 64}}, "model__untied": ["qkv", "o", "norm"]},
         r"towers of different width cannot share it"),
        ({"data__tasks": {"text,imag": 1}}, r"^data\.tasks .* did you mean 'image'\?$"),
        ({"schema_version": 7}, r"^schema_version: 7 is not allowed, it must be 1$"),
        ({"model__towers": {"text": {"ffn": "moe", "top_k": 9}, "image": {}}}, r"top_k: 9 .* between 1 and num_exp"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as error:
        from_dict(RunConfig, laid(**changes))
    assert "\n" not in str(error.value)


def test_a_missing_section_is_named():
    with pytest.raises(ConfigError, match=r"^model: this setting is missing"):
        from_dict(RunConfig, {})


def test_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    config = load(path, ["train.learning_rate=1e-3", "model.modalities.image.loss_weight=2", "model.untied=[ffn]"])
    assert config.train.learning_rate == 1e-3
    assert config.modalities["image"].loss_weight == 2.0
    assert config.model.untied_at(0) == {"ffn"}
    with pytest.raises(ConfigError, match="form key"):
        load(path, ["train"])
    with pytest.raises(ConfigError, match="no file"):
        load(tmp_path / "none.yaml")
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load(path)


def test_yaml_reads_names_as_written_and_numbers_as_they_look(tmp_path):
    """YAML 1.1 has `no` as false, 010 as 8, 1:30 as 90, and dates."""
    path, text = tmp_path / "run.yaml", "{name: 0123, out: 2024-01-01, model: {modalities: %s}, train: {%s}}"
    names = "{on: {vocab_size: 0x10}, no: {vocab_size: 1_000, tower: no}, y: {vocab_size: 9}}"
    path.write_text(text % (names, "compile: yes, eps: 1e-3"))
    config = load(path, ["train.compile=off"])
    assert (config.name, config.out) == ("0123", "2024-01-01") and not config.train.compile
    assert load(path).train.compile is True and config.train.eps == 1e-3
    sizes = {name: m.vocab_size for name, m in config.model.modalities.items()}
    assert sizes == {"on": 16, "no": 1000, "y": 9} and list(config.model.towers) == ["on", "no", "y"]
    assert load(path, [f"model.modalities={names}"]).model == config.model
    for setting, wrong in (("steps", "010"), ("minutes", "1:30"), ("compile", "maybe"), ("steps", "2024-01-01")):
        path.write_text(text % (names, f"{setting}: {wrong}"))
        with pytest.raises(ConfigError, match=f"^train.{setting}: '{wrong}' is not allowed"):
            load(path)
        path.write_text(text % (names, ""))
        with pytest.raises(ConfigError, match=f"^train.{setting}: '{wrong}' is not allowed"):
            load(path, [f"train.{setting}={wrong}"])
    path.write_text("{? [a] : 1}")
    with pytest.raises(ConfigError, match="line 1 has a list or a mapping where a name must stand"):
        load(path)


def test_a_config_survives_being_written():
    config = from_dict(RunConfig, laid(model__untied={"0-1": ["ffn"]}, train__betas=[0.8, 0.9]))
    assert from_dict(RunConfig, yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config


def test_a_record_of_the_file_is_sorted():
    """What the weights are is the model's, the rest the run's; the file's form is one record for each."""
    values = laid(model__towers={"image": {"frozen": True, "ffn_width": 96, "learning_rate_scale": 0.5}})
    values["model"]["modalities"]["image"] |= {"codec": "image_tokens", "codec_options": {"a": [1]}, "loss_weight": 2}
    config = from_dict(RunConfig, values)
    assert config.modalities["image"] == ModalitySettings("image_tokens", {"a": [1]}, 2.0)
    assert config.towers["image"].frozen and config.towers["image"].learning_rate_scale == 0.5
    assert config.model.towers["image"].ffn_width == 96 and not config.towers["text"].frozen
    written = to_dict(config)
    assert "modalities" not in written and "towers" not in written
    assert written["model"]["modalities"]["image"]["codec_options"] == {"a": [1]}
    assert written["model"]["towers"]["image"]["frozen"] and written["model"]["towers"]["image"]["ffn_width"] == 96
    assert from_dict(RunConfig, yaml.safe_load(yaml.safe_dump(written))) == config
    plain = set(to_dict(config.model)["modalities"]["image"]) | set(to_dict(config.model)["towers"]["image"])
    assert not plain & {f.name for record in RECORDS.values() for f in dataclasses.fields(record)}


@pytest.mark.parametrize(("values", "words"), [
    ({"modalities": {"text": {"codec": "x"}}}, "modalities: unknown name"),
    ({"model": {"modalities": {"text": {"codecs": "x"}}}}, "model.modalities.text.codecs: .*did you mean 'codec'"),
    ({"model": {"modalities": {"text": {"loss_weight": -1}}}}, "model.modalities.text.loss_weight: -1.* 0 or more"),
    ({"model": {"modalities": {"text": {"loss_weight": "much"}}}}, "model.modalities.text.loss_weight: 'much'"),
    ({"model": {"modalities": {"text": {}}, "towers": {"text": {"frozen": 1}}}}, "model.towers.text.frozen: 1 .*true"),
    ({"model": {"modalities": {"text": {}}, "towers": {"b": {"frozen": True}}}}, "model.towers: 'b'.*(none uses it)"),
    ({"model": {"modalities": {"text": {}}, "towers": {"text": {"learning_rate_scale": math.nan}}}}, ".*scale: nan"),
    ({"model": {"modalities": ["text"]}}, r"model.modalities: \['text'\] .*mapping"),
    ({"model": 5}, "model: 5 .*mapping"),
])  # fmt: skip
def test_a_mistake_in_a_sorted_record_is_named_as_it_stands_in_the_file(values, words):
    with pytest.raises(ConfigError, match=rf"^{words}"):
        from_dict(RunConfig, values)


def test_a_checked_model_does_not_change_and_changes_nothing():
    given, towers = {"text": ModalityConfig(vocab_size=8)}, {"text": TowerConfig()}
    model = ModelConfig(modalities=given, towers=towers, untied=["ffn"])
    assert given["text"].tower == "" and towers["text"].width is None and model.towers["text"].width == 256
    given["image"] = ModalityConfig(vocab_size=5)
    assert list(model.modalities) == ["text"] and model.layout.size == 10
    for change in (
        lambda: setattr(model, "width", 5),
        lambda: setattr(model.modalities["text"], "vocab_size", 5),
        lambda: model.modalities.update(given),
        lambda: model.towers.pop("text"),
        lambda: model.modalities["text"].tower_by_role.setdefault("generation", "a"),
        lambda: model.untied.append("o"),
    ):
        with pytest.raises((TypeError, AttributeError)):
            change()
    again = dataclasses.replace(model, modalities={"text": ModalityConfig(vocab_size=20)})
    assert (model.layout.size, again.layout.size) == (10, 22)  # laid out anew
    assert pickle.loads(pickle.dumps(model)) == copy.deepcopy(model) == model


def test_widths_and_layers():
    assert [default_ffn_width(w) for w in (128, 256, 512, 4096)] == [384, 768, 1536, 11008]
    config = model_config(untied={"0": ["qkv"]})
    assert config.untied_at(0) == {"qkv"} and config.untied_at(1) == frozenset()
    one = ModelConfig(modalities={"text": ModalityConfig(vocab_size=5)})
    assert list(one.towers) == ["text"] and one.head_dim == 32


def test_every_setting_is_described():
    text = describe_settings()
    assert "train.learning_rate = 0.001\n    Peak learning rate." in text
    empty = [a for a, b in zip(text.splitlines(), text.splitlines()[1:]) if not a.startswith(" ") and not b.strip()]
    assert empty == []
    names = {line.partition(" ")[0] for line in text.splitlines() if not line.startswith(" ")}
    assert {"model.modalities.<name>.codec", "model.towers.<name>.frozen", "model.modalities.<name>.objective"} <= names
    assert not any(name.startswith(("modalities", "towers")) for name in names) and len(names) > 140
    assert "model.untied = ['qkv', 'o', 'ffn', 'norm']" in text


def test_config_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path("quickstart").stem == "quickstart"
    (tmp_path / "quickstart").mkdir()  # such as an exported model: no run's folder
    assert config_path("quickstart").name == "quickstart.yaml"
    with pytest.raises(ConfigError, match=r"there is no file 'empty/config\.yaml'"):
        (tmp_path / "empty").mkdir()
        config_path("empty")
    (tmp_path / "quickstart" / "config.yaml").write_text("{}")
    assert config_path("quickstart") == Path("quickstart/config.yaml")
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        config_path("quickstrat")
    with pytest.raises(ConfigError, match="no file"):
        config_path("none.yaml")


def test_one_tower_may_have_settings_without_the_others_being_listed():
    modalities = {"text": ModalityConfig(vocab_size=8), "image": ModalityConfig(vocab_size=8)}
    model = ModelConfig(modalities=modalities, width=64, towers={"image": TowerConfig(ffn_width=96)})
    assert list(model.towers) == ["text", "image"]
    assert [t.ffn_width for t in model.towers.values()] == [192, 96]
    modalities = {"text": ModalityConfig(vocab_size=8), "image": ModalityConfig(vocab_size=8, tower="images")}
    with pytest.raises(ConfigError, match=r"image.tower: unknown name 'images'"):
        ModelConfig(modalities=modalities, towers={"text": TowerConfig()})
