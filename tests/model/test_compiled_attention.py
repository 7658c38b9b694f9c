"""Blocks that are compiled for a GPU's attention: what changes from batch to batch is no constant of the graph."""

import numpy as np
import pytest
import torch
from helpers.flash import flash
from helpers.models import model_config, random_documents

from plait.batch.assemble import pack
from plait.model import attention
from plait.model.attention import MAX_KEYS, AttentionPlan
from plait.model.mask import segments, varlen_calls
from plait.model.mot import MixtureOfTransformers


@pytest.fixture
def planned_for_a_gpu(monkeypatch):
    """Batches on the CPU are planned as on a GPU in 16 bits."""

    def of(cls, found, num_tokens, device, dtype=torch.float32):
        return cls.by_varlen(found, varlen_calls(found), ("cpu", False))

    monkeypatch.setattr(AttentionPlan, "of", classmethod(of))
    monkeypatch.setattr(attention, "varlen_attention", lambda: flash)


@pytest.mark.parametrize("mel", [False, True], ids=["text", "spans"])
def test_variable_length_attention_in_compiled_blocks(planned_for_a_gpu, mel):
    """Batches of changing sizes give what eager blocks give, from few graphs."""
    rng = np.random.default_rng(0)
    config = model_config(mel=mel, num_layers=1)
    model, compiled = (MixtureOfTransformers(config).double() for _ in range(2))
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled.compile_blocks(backend=counted)
    for count in (1, 3, 2, 9, 5, 12, 7, 4, 30, 17):
        batch = pack(random_documents(rng, count, mel=mel), config, pad_rows_to=4)
        assert sum(len(c.keys) for c in varlen_calls(segments(batch.spans))) <= MAX_KEYS * batch.num_tokens * 9
        with torch.no_grad():
            for eager, fast in zip(model(batch), compiled(batch), strict=True):
                torch.testing.assert_close(fast, eager, rtol=0, atol=1e-12)
    assert len(graphs) <= 8, len(graphs)
