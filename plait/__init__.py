"""plait: Mixture-of-Transformers. Text, images and speech keep their own parameters; one attention weaves them."""

import importlib

__version__ = "0.1.0"

# name -> module, imported when first used, so that `import plait` costs nothing
_PUBLIC = {
    "Batch": "plait.batch",
    "Document": "plait.parts",
    "Part": "plait.parts",
    "pack": "plait.batch",
    "ModalityConfig": "plait.model_config",
    "ModalitySettings": "plait.run_records",
    "ModelConfig": "plait.model_config",
    "RunConfig": "plait.config",
    "SamplingConfig": "plait.config",
    "TowerConfig": "plait.model_config",
    "TowerSettings": "plait.run_records",
    "MixtureOfTransformers": "plait.model.mot",
    "load_pretrained": "plait.model.pretrained",
    "save_pretrained": "plait.model.pretrained",
    "loss_sums": "plait.objectives",
    "Request": "plait.generate",
    "Generator": "plait.generate",
    "Pipeline": "plait.pipeline",
    "load": "plait.pipeline",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
