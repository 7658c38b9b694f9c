"""Tokens dealt out to towers at random: a control that depends on documents alone."""

import numpy as np
import pytest
import torch
from helpers.models import SIZES, model_config, random_documents

from plait.batch.assemble import assemble, pack, spell
from plait.common.errors import ConfigError
from plait.config.model import ModalityConfig, ModelConfig
from plait.generate import Request, generate
from plait.model.mot import MixtureOfTransformers
from plait.objectives import loss_sums

TOWERS = ["a", "b"]


def random_config(**settings) -> ModelConfig:
    records = {name: ModalityConfig(vocab_size=size, tower_at_random=TOWERS) for name, size in SIZES.items()}
    return ModelConfig(modalities=records, width=16, num_layers=2, num_heads=2, ffn_width=24, **settings)


def towers_by_document(batch) -> dict[int, np.ndarray]:
    """Return the tower of each token, by the document's own index."""
    starts = np.cumsum([0, *batch.routing.padded_sizes])
    towers = np.searchsorted(starts, batch.routing.to_sequence.numpy(), side="right") - 1
    pieces = np.split(towers, np.cumsum(batch.lengths)[:-1])
    return {d.index: piece for d, piece in zip(batch.documents, pieces, strict=True)}


def test_a_draw_depends_on_the_document_and_the_place_alone(rng):
    config, documents = random_config(), random_documents(rng, 6)
    together = towers_by_document(pack(documents, config))
    for chosen in ([5, 2], [0], [3, 1, 4]):  # other packings, as other ranks have
        for index, towers in towers_by_document(pack([documents[i] for i in chosen], config)).items():
            assert (towers == together[index]).all()
    assert len({tuple(t[:6]) for t in together.values()}) > 1  # not the place alone
    longer = random_documents(rng, 6)
    for index, towers in towers_by_document(pack(longer, config)).items():  # nor what the tokens are
        n = min(len(towers), len(together[index]))
        assert (towers[:n] == together[index][:n]).all()


def test_shares_are_equal_in_every_modality(rng):
    batch = pack(random_documents(rng, 400), random_config())
    towers = np.concatenate(list(towers_by_document(batch).values()))
    for name in SIZES:
        mine = np.concatenate([np.arange(s.start, s.stop) for s in batch.spans if s.modality == name])
        assert len(mine) > 1000 and abs(towers[mine].mean() - 0.5) < 0.05


def test_identical_towers_are_dense(rng):
    """Outputs' losses and gradients in float64: what is dealt out comes together again."""
    documents = random_documents(rng, 5)
    dense = MixtureOfTransformers(model_config(towers=dict.fromkeys(SIZES, "a"), num_kv_heads=2)).double()
    dealt = MixtureOfTransformers(random_config()).double()
    own = dense.state_dict()
    dealt.load_state_dict({n: own[n.replace(".b.", ".a.").replace(".shared.", ".a.")] for n in dealt.state_dict()})
    sums = []
    for model in (dense, dealt):
        batch = pack(documents, model.config)
        sums.append(loss_sums(model, model(batch), batch))
        sums[-1].sum().backward()
    torch.testing.assert_close(sums[1], sums[0], rtol=0, atol=1e-10)
    weights = dict(dealt.named_parameters())
    for name, parameter in dense.named_parameters():
        parts = [weights[n].grad for n in (name, name.replace(".a.", ".b.")) if n in weights]
        if parts:
            torch.testing.assert_close(sum(parts), parameter.grad, rtol=0, atol=1e-10)


def test_it_refuses_to_generate():
    model = MixtureOfTransformers(random_config())
    with pytest.raises(ConfigError, match=r"text\.tower_at_random: .* cannot generate; it is a control"):
        generate(model, [Request([], output="text")], grids={})
    with pytest.raises(ConfigError, match="cannot generate"):
        assemble([spell(d, model.config) for d in random_documents(np.random.default_rng(0), 1)], model.config)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tower_at_random": ["a"]}, r"image\.tower_at_random: \['a'\] .* two towers or more"),
        ({"tower_at_random": TOWERS, "tower": "c"}, r"image\.tower: 'c' .* left out beside tower_at_random"),
        ({"tower_at_random": TOWERS, "tower_by_role": {"generation": "a"}}, r"image\.tower_by_role: .* left out"),
        ({"tower_at_random": TOWERS, "objective": "diffusion"}, r"empty where the objective is diffusion"),
    ],
)
def test_mistakes_are_named(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ModelConfig(modalities={"text": ModalityConfig(), "image": ModalityConfig(**settings)}, width=16, num_heads=2)
