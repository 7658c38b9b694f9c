"""Requests that ask for different adapters, in one batch: each is answered as by a model that has its own merged."""

import copy

import numpy as np
import pytest
from helpers.adapters import random_adapter
from helpers.models import random_part, sharp_model

from plait.common.errors import ConfigError
from plait.config.generation import DiffusionConfig, SamplingConfig
from plait.generate import Generator, Request, generate
from plait.model.adapters import attach, merge_adapter

GRIDS = {"image": (2, 3), "mel": (2, 2)}
NAMES = ("", "one", "two")


def asked(rng, count: int) -> list[Request]:
    prompt = [random_part(rng, "text", 30)]  # what some share is not computed once where their adapters differ
    found = []
    for i in range(count):
        given = prompt if i % 2 else [random_part(rng, "text"), random_part(rng, "mel"), random_part(rng, "image")]
        sampling = {"mel": SamplingConfig(steps=3, guidance=(1.0, 2.0)[i % 3 == 0])}
        output = ("text", "mel", "image", None)[i % 4]
        found.append(Request(given, output, sampling, {"text": 5, "speech": 4}, seed=i, adapter=NAMES[i % 3],
                             max_spans=1))  # fmt: skip
    return found


@pytest.mark.parametrize("page_size", [0, 4])
@pytest.mark.parametrize("settings", [{}, {"untied": ["norm"]}], ids=["towers", "shared matrices"])
def test_each_has_its_own_in_one_batch(rng, tmp_path, settings, page_size):
    model, requests = sharp_model(**settings), asked(rng, 15)
    folders = {name: random_adapter(model, tmp_path / name, seed) for seed, name in enumerate(NAMES[1:])}
    by_name = {"": copy.deepcopy(model)}
    for name, folder in folders.items():
        by_name[name] = copy.deepcopy(model)
        merge_adapter(by_name[name], folder)
    attach(model, folders)
    options = {"grids": GRIDS, "diffusion": DiffusionConfig(process="flow"), "page_size": page_size, "max_length": 96}
    together = generate(model, requests, max_rows=6, **options)
    differs = 0
    for request, result in zip(requests, together, strict=True):
        plain = Request(**{**vars(request), "adapter": ""})
        (own,), (other,) = (generate(m, [plain], **options) for m in (by_name[request.adapter], by_name[""]))
        assert same(result, own)
        differs += request.adapter != "" and not same(result, other)
    assert differs > 5


def same(a, b) -> bool:
    return [p.modality for p in a.parts] == [p.modality for p in b.parts] and all(
        np.array_equal(x.ids, y.ids) if x.latents is None else np.allclose(x.latents, y.latents, rtol=0, atol=1e-6)
        for x, y in zip(a.parts, b.parts, strict=True)
    )


def test_an_adapter_that_is_not_there(rng, tmp_path):
    model = sharp_model()
    attach(model, {"style": random_adapter(model, tmp_path / "style", 0)})
    with pytest.raises(ConfigError, match=r"generate\.adapter: unknown name 'stile', allowed: style; did you mean"):
        Generator(model, grids=GRIDS).add(Request([random_part(rng, "text")], "text", adapter="stile"))
