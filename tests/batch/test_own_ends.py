"""Documents whose first and last ids are the first modality's own, as a language model's tokenizer has them."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.models import SIZES, model_config

from plait.batch.assemble import assemble, pack, spell, spell_prompt
from plait.batch.documents import Document, Part
from plait.common.errors import ConfigError
from plait.config.generation import SamplingConfig
from plait.config.id_layout import IdLayout
from plait.generate import Request, generate
from plait.model.mot import MixtureOfTransformers

TEXT = np.array([5, 6, 7])


def config_with(bos, eos, stops=()):
    return dataclasses.replace(model_config(), bos=bos, eos=eos, stops=stops)


def ids_of(config, *parts, **settings) -> list[int]:
    return [int(i) for run in spell(Document(list(parts)), config, **settings) for i in run.ids]


@pytest.mark.parametrize(
    ("bos", "eos", "ids"),
    [(1, 2, [1, 5, 6, 7, 2]), ("none", 2, [5, 6, 7, 2]), ("none", "added", [5, 6, 7, 20]),
     ("added", "added", [20, 5, 6, 7, 21]), ("added", 2, [20, 5, 6, 7, 2]), (1, "added", [1, 5, 6, 7, 20])],
)  # fmt: skip
def test_documents_open_and_end_with_the_ids_that_the_config_names(bos, eos, ids):
    config = config_with(bos, eos)
    assert ids_of(config, Part("text", TEXT)) == ids
    added = [bos, eos].count("added")
    assert config.layout.size == sum(SIZES.values()) + added + 4 and len(config.layout.added) == added
    assert config.layout.ids("text") == range(20) and config.layout.ids("image") == range(20 + added, 32 + added)
    assert config.layout.name_of(config.layout.eos) == "<eos>"


def test_what_a_chat_template_has_written_is_not_written_again():
    config = config_with(1, 2, (3,))
    for last in (2, 3):  # the end of text, and the end of a turn
        assert ids_of(config, Part("text", np.array([1, 5, last]))) == [1, 5, last]
        assert ids_of(config, Part("text", np.array([5])), Part("text", np.array([6, last]))) == [1, 5, 6, last]
    assert ids_of(config, Part("text", np.array([5, 3, 6]))) == [1, 5, 3, 6, 2]
    assert ids_of(config, Part("image", np.array([4])))[-1] == 2
    assert ids_of(config, Part("text", TEXT), close=False) == [1, 5, 6, 7]


def test_a_document_without_an_opening_id_is_packed_and_learned():
    config = config_with("none", 2)
    batch = pack([Document([Part("text", TEXT)]), Document([Part("image", np.array([3, 4]))])], config)
    assert batch.lengths == [4, 5] and batch.ids[:4].tolist() == [5, 6, 7, 2]
    assert batch.targets.ids[:3].tolist() == [6, 7, 2], "the first id is no target"


@torch.no_grad()
def test_generation_ends_where_the_model_says_so():
    """Any of the ids that end a text ends it, and none of them stands first or in the text."""
    model = MixtureOfTransformers(config_with("none", 2, (3, 4))).double()
    requests = [Request([Part("text", TEXT)], "text", {"text": SamplingConfig(temperature=5.0)}, {"text": 40}, number=i)
                for i in range(60)]  # fmt: skip
    results = generate(model, requests, grids={}, max_length=100)
    texts = [r.parts[0].ids for r in results]
    assert {r.stopped for r in results} == {"eos"} and all(len(t) for t in texts)
    assert not {2, 3, 4} & set(np.concatenate(texts).tolist()) and np.concatenate(texts).max() < 20
    assert np.median([len(t) for t in texts]) < 15, "three of twenty ids end it"


def test_nothing_to_go_on_from_is_refused():
    model = MixtureOfTransformers(config_with("none", 2))
    for output in (None, "text"):
        with pytest.raises(ConfigError, match=r"generate\.prompt: '' .*documents of this model open without <bos>"):
            generate(model, [Request([], output)], grids={})
    (result,) = generate(model, [Request([], "image", number=3)], grids={"image": (2, 2)})
    assert len(result.parts[0].ids) == 4
    assert spell_prompt([], model.config) == []


def test_layouts_of_earlier_models_are_as_they_were():
    layout = IdLayout.of({"text": 10, "image": 4})
    assert (layout.bos, layout.eos, layout.offsets["image"], layout.opening["image"], layout.size) == (
        10,
        11,
        12,
        16,
        18,
    )
    assert layout.stops == {11} and layout.added == (10, 11)
    assert assemble([spell(Document([]), model_config())], model_config()).ids.tolist() == [20, 21]
