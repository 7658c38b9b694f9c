"""plait: Mixture-of-Transformers. Text, images and speech keep their own parameters; one attention weaves them."""

import importlib

__version__ = "0.2.0"

# name -> module, imported when first used, so that `import plait` costs nothing
_PUBLIC = {
    "Batch": "plait.batch.batch",
    "Document": "plait.batch.documents",
    "Part": "plait.batch.documents",
    "pack": "plait.batch.assemble",
    "ModalityConfig": "plait.config.model",
    "ModalitySettings": "plait.config.run_records",
    "ModelConfig": "plait.config.model",
    "RunConfig": "plait.config.run",
    "SamplingConfig": "plait.config.generation",
    "TowerConfig": "plait.config.model",
    "TowerSettings": "plait.config.run_records",
    "MixtureOfTransformers": "plait.model.mot",
    "loss_sums": "plait.objectives",
    "weighted_loss": "plait.objectives",
    "Request": "plait.generate",
    "Generator": "plait.generate",
    "Pipeline": "plait.run.load",
    "Policy": "plait.run.policy",
    "load": "plait.run.load",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
