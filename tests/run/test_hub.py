"""Models on the Hugging Face Hub, by the unmodified `huggingface_hub` against a Hub on this machine."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from helpers.adapters import random_adapter
from helpers.fitted import speech_codec
from helpers.hub import TOKEN, local_hub
from helpers.models import model_config
from helpers.served import small_pipeline

import plait
from plait.common.errors import CheckpointError, ConfigError
from plait.common.hub import found, is_name
from plait.config.model import ModalityConfig
from plait.model.mot import MixtureOfTransformers
from plait.model.pretrained import CODE

PUSH = """
import sys, plait
pipeline = plait.load(sys.argv[1])
print(pipeline.push_to_hub("maria/small", max_shard_size="60KB"))
pipeline.push_to_hub("maria/single", max_shard_size="60KB")
pipeline.push_to_hub("maria/single")
print(pipeline.model.push_to_hub("maria/bare", private=True, revision="trial"))
"""
LOAD = """
import sys, plait, torch
folder, name = sys.argv[1:3]
here, there = plait.load(folder, device="cpu"), plait.load(name, device="cpu")
assert all(torch.equal(a, b) for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True))
model = plait.MixtureOfTransformers.from_pretrained(name)
assert model.config == here.model.config
if "--trial" in sys.argv:
    plait.MixtureOfTransformers.from_pretrained("maria/bare", revision="trial")
for output in ("text", "image", "speech"):
    a, b = (p.generate("a fox", output, seed=2)[0].output for p in (here, there))
    assert str(a) == str(b) and len(a) == 1, output
"""


@pytest.fixture(scope="module")
def hub():
    with local_hub() as found:
        yield found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    fitting = tmp_path_factory.mktemp("fitting")
    pipeline = small_pipeline(fitting, chat=True, speech=speech_codec(fitting))
    pipeline.model.float()
    pipeline.tasks = {"text,image": 1.0}
    pipeline.save_pretrained(folder)
    return folder


def python(hub, home, code: str, *words: str, token=TOKEN, succeeds: bool = True, **more):
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300, cwd=home,
                          env=hub.environment(home / "hf", token) | more)  # fmt: skip
    assert (done.returncode == 0) is succeeds, done.stderr
    return done


def command(hub, home, *words: str, token=TOKEN, code: int = 0, **more) -> str:
    done = subprocess.run([sys.executable, "-m", "plait", *words], capture_output=True, text=True, timeout=300,
                          cwd=home, env=hub.environment(home / "hf", token) | more)  # fmt: skip
    assert done.returncode == code, done.stderr
    if code:
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr if code else done.stdout


def test_what_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_name("maria/small") and is_name("maria/small-1.5@v2") and is_name("a_b/c.d")
    for place in ("small", "runs/quickstart", "./maria/small", "../maria", "/maria/small", "maria/small/x", "maria/",
                  tmp_path / "maria", "maria/sm all", "maria/-small", ""):  # fmt: skip
        assert not is_name(place), place
    assert found("runs/quickstart", "run") == found(tmp_path / "runs/quickstart", "run").relative_to(tmp_path)
    with pytest.raises(ConfigError, match=r"revision: 'v1' is not allowed, it must be left out: 'runs/x' is a folder"):
        found("runs/x", "run", revision="v1")


def test_published_and_loaded_by_name(hub, saved, tmp_path):
    """In processes of their own, as the library reads its address when it is imported."""
    addresses = python(hub, tmp_path, PUSH, str(saved)).stdout.split()
    assert [a.split("/")[3:5] for a in addresses] == [["maria", "small"], ["maria", "bare"]]
    files = hub.repos["maria/small"].files("main")[1]
    assert "model.safetensors.index.json" in files and "codecs/image/codec.json" in files
    assert max(len(data) for path, data in files.items() if path.startswith("model-")) <= 61_000
    assert b'plait.load("maria/small")' in files["README.md"] and b"library_name: plait" in files["README.md"]
    bare = hub.repos["maria/bare"]
    assert bare.private and "config.json" not in bare.files("main")[1] and "config.json" in bare.files("trial")[1]

    hub.seen.clear()
    python(hub, tmp_path, LOAD, str(saved), "maria/small", "--trial")
    assert hub.count("GET", "/blobs/.*maria/small/") == sum(
        p.endswith(".safetensors") for p in files
    )  # each file once, then kept
    python(hub, tmp_path, "import plait; plait.load('maria/small')", HF_HUB_OFFLINE="1")

    # one file in place of many: none of the old ones stays
    files = hub.repos["maria/single"].files("main")[1]
    assert sorted(p for p in files if p.startswith("model")) == sorted([CODE, "model.safetensors"])


def test_commands_take_names(hub, saved, tmp_path):
    hub.add("paul/small", saved)
    model = MixtureOfTransformers.from_pretrained(saved)
    random_adapter(model, tmp_path / "style", 3)
    hub.add("paul/style", tmp_path / "style")
    plain = command(hub, tmp_path, "generate", "paul/small", "--text", "a fox", "--output", "text", "--seed", "3")
    styled = command(hub, tmp_path, "generate", "paul/small@main", "--text", "a fox", "--output", "text", "--seed",
                     "3", "--adapter", "paul/style")  # fmt: skip
    assert (tmp_path / "generated/samples.jsonl").is_file() and plain != styled
    assert not (tmp_path / "paul").exists()


def test_a_broken_transfer_goes_on_where_it_was(hub, saved, tmp_path):
    config = model_config(width=64)
    config = dataclasses.replace(config, modalities={"text": ModalityConfig(vocab_size=100_000)}, towers={})
    model = MixtureOfTransformers(config)
    model.save_pretrained(tmp_path / "large")
    hub.add("paul/broken", tmp_path / "large")
    hub.breaks["model.safetensors"] = [10, 22_000_000]  # the library keeps what came in pieces of 10 MiB
    code = "import plait; print(next(plait.MixtureOfTransformers.from_pretrained('paul/broken').parameters()).sum())"
    assert str(next(model.parameters()).sum()) == python(hub, tmp_path, code, token="").stdout.strip()
    ranges = [r for method, path, r in hub.seen if method == "GET" and "paul/broken/model" in path]
    assert ranges == ["", "", f"bytes={2 * 10 * 2**20}-"] and hub.breaks["model.safetensors"] == []


REFUSED = {
    # name, token: exit code, sentence
    ("paul/nothing", ""): (4, "there is no folder and no model on the Hub 'paul/nothing', or it is private: log in"),
    ("paul/private", TOKEN): (4, "or it is private: log in with `hf auth login`, or set HF_TOKEN"),
    ("paul/gated", TOKEN): (4, "'paul/gated' is gated: accept its licence on its page, and log in"),
    ("paul/fine@v9", ""): (4, "'paul/fine@v9' on the Hub has no revision 'v9'"),
    ("paul/fine", "hf_wrong"): (5, "the Hub does not know who you are, log in with `hf auth login`, or set HF_TOKEN"),
    ("paul/empty", ""): (4, "'paul/empty' on the Hub holds no config.json"),
    ("paul/short", ""): (4, "is not a whole safetensors file (it has"),
    ("paul/missing", ""): (4, "1 weights are missing and 0 are unexpected, the first is 'blocks.0.qkv.text.weight'"),
    ("paul/other", ""): (4, "describes ['BertModel'], it must be 'MixtureOfTransformers'"),
}
TRY_ALL = """
import json, os, sys, plait
for name, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        plait.load(name)
    except plait.common.errors.PlaitError as error:
        print(json.dumps([error.exit_code, str(error)]))
pipeline = plait.load(sys.argv[2])
for name, token in json.loads(sys.argv[3]):
    os.environ["HF_TOKEN"] = token
    try:
        pipeline.push_to_hub(name)
    except plait.common.errors.PlaitError as error:
        print(json.dumps([error.exit_code, str(error)]))
"""
NOT_PUBLISHED = {
    ("paul/mine", TOKEN): (5, "you may not write to 'paul/mine' on the Hub, take a name of your own"),
    ("maria/mine", ""): (5, "the Hub does not know who you are, log in"),
    ("mine", TOKEN): (2, "push: 'mine' is not allowed, it must be a name on the Hub such as owner/model"),
}


def test_what_cannot_be_loaded_or_published(hub, saved, tmp_path):
    for kind in ("private", "gated", "fine"):
        hub.add(f"paul/{kind}", saved, **({} if kind == "fine" else {kind: True}))
    files = hub.repos["paul/fine"].files("main")[1]
    others = {"empty": {}, "short": files | {"model.safetensors": files["model.safetensors"][:-9]},
              "missing": files | without_a_weight(saved, tmp_path),
              "other": {"config.json": b'{"architectures": ["BertModel"]}'}}  # fmt: skip
    for name, held in others.items():
        hub.add(f"paul/{name}", tmp_path / "nothing").commit(held)
    asked = [json.dumps(list(cases)) for cases in (REFUSED, NOT_PUBLISHED)]
    done = python(hub, tmp_path, TRY_ALL, asked[0], str(saved), asked[1])
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(REFUSED) + len(NOT_PUBLISHED)
    for (code, said), (wanted, sentence) in zip(found, [*REFUSED.values(), *NOT_PUBLISHED.values()], strict=True):
        assert code == wanted and sentence in said and len(said.splitlines()) == 1, said
    assert not {"paul/mine", "maria/mine", "mine"} & hub.repos.keys()


def without_a_weight(saved, folder) -> dict[str, bytes]:
    from safetensors.torch import load_file, save_file

    tensors = load_file(saved / "model.safetensors")
    del tensors["blocks.0.qkv.text.weight"]
    save_file(tensors, folder / "model.safetensors")
    return {"model.safetensors": (folder / "model.safetensors").read_bytes()}


def test_no_network(hub, tmp_path):
    said = command(
        hub, tmp_path, "generate", "paul/absent", "--output", "text", code=5, HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert "'paul/absent' is no folder here, and it cannot be fetched from the Hub" in said
    said = command(hub, tmp_path, "generate", "paul/absent", "--output", "text", code=5, HF_HUB_OFFLINE="1")
    assert "cannot be fetched from the Hub" in said


def test_shards(tmp_path):
    model = MixtureOfTransformers(model_config())
    model.save_pretrained(tmp_path, max_shard_size=40_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict()) and len(set(index["weight_map"].values())) > 1
    (tmp_path / "model_of_mine.txt").write_text("kept")
    again = MixtureOfTransformers.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors", "model_of_mine.txt", CODE]
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shard = next(tmp_path.glob("model-00001-of-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"{shard.name}' is not a whole safetensors file"):
        MixtureOfTransformers.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"there is no file '.*{shard.name}'"):
        MixtureOfTransformers.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", ["5 gigabytes", 0, -3, True, None, "0GB"])
def test_sizes_of_shards(tmp_path, size):
    with pytest.raises(ConfigError, match=r'max_shard_size: .* must be a number of bytes, or a text such as "5GB"'):
        MixtureOfTransformers(model_config()).save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_the_package_is_needed_for_names_alone(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert found(tmp_path, "run") == tmp_path
    with pytest.raises(plait.common.errors.ResourceError, match=r"'huggingface_hub' is not installed.*plait\[hub\]"):
        plait.load("maria/small")
