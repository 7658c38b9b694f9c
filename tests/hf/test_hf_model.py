"""plait's models in transformers: its Auto classes, pipelines, Trainer and streamers, on a small random model."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.fitted import speech_codec
from helpers.hub import local_hub
from helpers.served import SIDE, small_pipeline
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    TextIteratorStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

import plait
import plait.hf
from plait.batch.assemble import pack
from plait.batch.documents import Document
from plait.common.errors import CheckpointError, ConfigError, DataError
from plait.objectives import loss_sums
from plait.objectives.diffusion import corrupt

FOX = Image.fromarray(np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
TONE = np.sin(np.arange(3000, dtype=np.float32) / 7)
CHAT = [{"role": "user", "content": [{"type": "image", "image": FOX}, {"type": "text", "text": "What is it?"}]}]
ROWS = [
    {"parts": [{"text": "a fox on a blue background", "loss": False}, {"image": FOX}]},
    {"parts": [{"image": FOX, "loss": False}, {"text": "an owl"}]},
    {"parts": [{"audio": TONE, "loss": False}, {"text": "a fox"}]},
    {"messages": [*CHAT, {"role": "assistant", "content": "an owl"}]},
]


@pytest.fixture(scope="module", params=[True, False], ids=["chat", "plain"])
def folder(request, tmp_path_factory):
    fitting = tmp_path_factory.mktemp("fitting")
    saved = small_pipeline(fitting, chat=request.param, speech=speech_codec(fitting))
    saved.model.float()
    saved.save_pretrained(fitting / "small")
    return fitting / "small"


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForMultimodalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def own(folder):
    return plait.load(folder, device="cpu")


def test_auto_classes(folder, model, processor):
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, plait.hf.PlaitConfig) and config.model == model.mot.config
    assert isinstance(model, plait.hf.PlaitForMultimodalLM) and isinstance(processor, plait.hf.PlaitProcessor)
    assert model.output_modalities == ("text", "image", "audio")
    assert set(model.state_dict()) == set(plait.MixtureOfTransformers.from_pretrained(folder).state_dict())
    assert next(model.parameters()) is next(model.mot.parameters())
    twin = copy.deepcopy(model)
    assert next(twin.parameters()) is next(twin.mot.parameters()) is not next(model.parameters())


def test_logits_and_loss_are_plaits_own(model, processor, own):
    model, prompt = copy.deepcopy(model).double(), ["a fox", FOX, TONE]
    parts = own.encode(own.read(prompt))
    inputs = processor._inputs([parts, parts[:1]])
    logits = model(**inputs).logits
    batch = pack([Document(parts)], model.mot.config)
    expected = model.mot.logits(hidden := model.mot(batch), [torch.arange(len(h)) for h in hidden])
    expected = expected.index_select(0, batch.routing.to_sequence)[:-1]  # a prompt has no <eos>
    assert torch.allclose(logits[0], expected, rtol=0, atol=1e-9)

    rows = [row for row in ROWS if "parts" in row]
    labelled = processor.collate(rows)
    torch.manual_seed(5)
    loss = model(**labelled).loss
    torch.manual_seed(5)
    documents = [processor._document(row) for row in rows]
    for i, document in enumerate(documents):
        document.index = i
    batch = corrupt(pack(documents, model.mot.config), model.diffusion, int(torch.randint(2**31, ())))
    sums = loss_sums(model.mot, model.mot(batch), batch)
    tokens, images = batch.counts[0] + batch.counts[2], batch.counts[1]
    assert torch.allclose(loss, (sums[0] + sums[2]) / tokens + sums[1] / images, rtol=0, atol=1e-9)
    model.config.loss_weights = {"image": 0.0}
    torch.manual_seed(5)
    assert torch.allclose(model(**labelled).loss, (sums[0] + sums[2]) / tokens, rtol=0, atol=1e-9)
    model.config.loss_weights = {"picture": 1.0}
    with pytest.raises(ConfigError, match="loss_weights: 'picture' is not allowed, it must be the name of a modality"):
        model(**labelled)


def test_generation_is_plaits_own(model, processor, own):
    prompts, seed = ["a fox", "an owl and a fox"], 11
    inputs = processor(text=prompts)
    for mode, name in {"text": "text", "image": "image", "audio": "speech"}.items():
        theirs = model.generate(**inputs, generation_mode=mode, seed=seed)
        made = processor.post_process_multimodal_output(theirs, generation_mode=mode)
        for text, answer, sample in zip(prompts, made, own.generate(prompts, name, seed=seed), strict=True):
            ((_, medium),) = sample.output
            if mode == "text":
                assert answer == text + medium
            else:
                assert np.array_equal(np.asarray(answer), medium)
    free = model.generate(**inputs, generation_mode="any", seed=seed)
    assert processor.post_process_multimodal_output(free, generation_mode="any")
    set_seed(2)
    first = model.generate(**inputs)
    set_seed(2)
    assert torch.equal(first, model.generate(**inputs))


def test_settings_of_generation(model, processor):
    inputs = processor(text="a fox")
    greedy = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert torch.equal(greedy, model.generate(**inputs, temperature=0.0, max_new_tokens=6))
    named = model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=6, temperature=0.0))
    assert torch.equal(greedy, named)
    length = inputs["input_ids"].shape[1]
    assert model.generate(**inputs, max_length=length + 3, do_sample=False).shape[1] <= length + 4
    several = model.generate(**inputs, num_return_sequences=3, max_new_tokens=6, seed=1)
    assert len(several) == 3 and len({tuple(row.tolist()) for row in several}) > 1
    with pytest.raises(ConfigError, match="generate: unknown name 'num_beams', allowed: do_sample"):
        model.generate(**inputs, num_beams=4)
    with pytest.raises(ConfigError, match=r"generate: unknown name 'temprature'.*did you mean 'temperature'"):
        model.generate(**inputs, temprature=1.0)
    with pytest.raises(ConfigError, match="generation_mode: 'video' is not allowed"):
        model.generate(**inputs, generation_mode="video")


def test_a_streamer_is_told_of_ids_as_they_come(model, processor):
    inputs = processor(text="a fox", images=FOX)
    whole = processor.decode(model.generate(**inputs, max_new_tokens=12, seed=4)[0])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    seen = []
    put = streamer.put
    streamer.put = lambda ids: (seen.append(ids.numel()), put(ids))
    model.generate(**inputs, max_new_tokens=12, seed=4, streamer=streamer)
    assert "a fox" + "".join(streamer) == whole and set(seen[1:]) == {1} and len(seen) > 6
    with pytest.raises(ConfigError, match=r"generate.streamer: 2 is not allowed, it must be used with one prompt"):
        model.generate(**processor(text=["a", "b"]), streamer=streamer)


def test_pipelines(folder):
    pipe = pipeline("any-to-any", model=str(folder))
    (answer,) = pipe(text="a fox", max_new_tokens=5)
    assert answer["generated_text"].startswith("a fox")
    (answer,) = pipe(text="a fox", max_new_tokens=5, return_full_text=False)
    assert not answer["generated_text"].startswith("a fox")
    assert pipe("a fox", generation_mode="image")[0]["generated_image"].size == (SIDE, SIDE)
    sound = pipe("a fox", generation_mode="audio")[0]["generated_audio"]
    assert sound.dtype == np.float32 and sound.ndim == 1
    (answer,) = pipe(CHAT, generation_mode="image", generate_kwargs={"seed": 3})
    assert isinstance(answer["generated_image"], Image.Image)
    assert len(pipe(["a fox", "an owl"], images=[FOX, FOX], max_new_tokens=3)) == 2


def test_what_the_processor_takes(processor, own, tmp_path):
    FOX.save(tmp_path / "fox.png")
    first = processor(text="a <image> b", images=FOX)
    assert torch.equal(
        first["input_ids"], processor(text="a <image> b", images=[str(tmp_path / "fox.png")])["input_ids"]
    )
    parts = own.encode(own.read(["a ", FOX, " b"]))
    assert torch.equal(first["input_ids"], processor._inputs([parts])["input_ids"])
    assert torch.equal(
        processor(text="a", images=FOX)["input_ids"], processor(text="<image>a", images=FOX)["input_ids"]
    )
    batch = processor(text=["a", "<audio> and <audio>"], audio=[[], [TONE, TONE]])
    assert batch["attention_mask"][0].sum() < batch["attention_mask"][1].sum() and not batch["attention_mask"][0, 0]
    assert processor.batch_decode(batch["input_ids"]) == ["a", " and "]
    with pytest.raises(
        ConfigError, match="text: '<image> a' is not allowed, it must be with one mark <image> for each"
    ):
        processor(text="<image> a", images=[FOX, FOX])
    with pytest.raises(ConfigError, match="images: 1 is not allowed, it must be one for each text, 2 in all"):
        processor(text=["a", "b"], images=[FOX])
    with pytest.raises(ConfigError, match="videos"):
        processor(text="a", videos=[1])
    with pytest.raises(DataError, match="there is no"):
        processor(text="a", images="nothing.png")


def test_trainer(model, processor, folder, tmp_path):
    has_template = processor.chat_template is not None
    rows = ROWS if has_template else ROWS[:3]
    if not has_template:
        with pytest.raises(DataError, match="row: it has no 'parts', and the model no chat template"):
            processor.collate(ROWS)
    start = {"per_device_train_batch_size": 4, "learning_rate": 3e-3, "logging_steps": 1, "report_to": [],
             "remove_unused_columns": False, "use_cpu": True, "save_steps": 10, "disable_tqdm": True,
             "gradient_checkpointing": True, "lr_scheduler_type": "constant"}  # fmt: skip

    def trainer(steps: int):
        args = TrainingArguments(output_dir=str(tmp_path), max_steps=steps, **start)
        return Trainer(copy.deepcopy(model).train(), args, train_dataset=rows * 8, data_collator=processor.collate,
                       processing_class=processor)  # fmt: skip

    whole = trainer(20)
    whole.train()
    losses = [row["loss"] for row in whole.state.log_history if "loss" in row]
    assert len(losses) == 20 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    resumed = trainer(20)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
    # a checkpoint is a saved model: for transformers, and for plait with its codecs
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "checkpoint-20")
    mine = plait.load(tmp_path / "checkpoint-20", device="cpu")
    for a, b, c in zip(whole.model.parameters(), again.parameters(), mine.model.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert mine.generate("a fox", "image")[0].output[0][1].shape == (SIDE, SIDE, 3)
    assert again.record == json.loads((folder / "generation.json").read_text())


def test_loading_is_strict(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    kept = {n: t for n, t in tensors.items() if n != "blocks.1.o.image.weight"}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing, the first is 'blocks.1.o.image.weight'"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path)
    save_file(tensors | {"more": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are unexpected, the first is 'more'"):
        AutoModelForMultimodalLM.from_pretrained(tmp_path)


REMOTE = """
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline
import sys
model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "plait.hf" in sys.modules and type(model).__module__ == "plait.hf.model"
image = processor.post_process_multimodal_output(
    model.generate(**processor(text="a fox"), generation_mode="image"), generation_mode="image")
assert image[0].size == (16, 16)
model.push_to_hub("maria/tuned")
again = AutoModelForMultimodalLM.from_pretrained("maria/tuned", trust_remote_code=True)
assert again.record == model.record
"""


def test_by_name_with_the_models_own_small_file(folder, tmp_path):
    """From a Hub, in a process that never heard of plait."""
    with local_hub() as hub:
        hub.add("paul/small", folder)
        done = subprocess.run([sys.executable, "-c", REMOTE, "paul/small"], capture_output=True, text=True, timeout=300,
                              cwd=tmp_path, env=hub.environment(tmp_path / "hf"))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "modeling_plait.py" in hub.repos["maria/tuned"].files("main")[1]
