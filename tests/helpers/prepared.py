"""Configs and manifests of what is prepared, and the bytes that come of it."""

import json
from pathlib import Path

from plait.config.model import ModalityConfig, ModelConfig
from plait.config.run import DataConfig, PrepareConfig, RunConfig
from plait.config.run_records import ModalitySettings
from plait.prepare import stages as stages

ROWS = 150


def config_for(folder, manifest, names=("text", "image", "speech"), **settings) -> RunConfig:
    model = ModelConfig({n: ModalityConfig() for n in names}, width=16, num_heads=2)
    codecs = {n: ModalitySettings(f"fake_{n}") for n in names}
    settings = {"validation_share": 0.2, "shard_documents": 32, "num_workers": 1, "codec_documents": 100} | settings
    options = PrepareConfig(source=manifest if isinstance(manifest, list) else str(manifest), **settings)
    data = DataConfig(str(folder), batch_tokens=128, num_workers=0)
    return RunConfig(model, codecs, prepare=options, data=data)


def files(folder) -> dict[str, bytes]:
    """Return everything in a prepared folder but the times."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    report = json.loads(found["report.json"])
    report.pop("seconds")
    return found | {"report.json": json.dumps(report).encode()}
