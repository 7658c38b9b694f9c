"""Documents as the tensors of transformers, and back: the same batch, in random cases."""

import itertools

import numpy as np
import pytest
import torch
from helpers import encoders
from helpers.models import model_config, random_documents

from plait.batch.assemble import assemble, spell
from plait.batch.documents import Document, Part, role_of
from plait.common.errors import DataError
from plait.hf.inputs import IGNORED, Row, rows_of, tensors_of

ENDS = [{}, {"bos": "none"}, {"bos": 3, "eos": 4, "stops": (5,)}, {"eos": 4}]


def random_rows(rng, config) -> list[Row]:
    rows = []
    for document in random_documents(rng, 6, mel=True):
        for part in document.parts:
            part.loss = float(rng.integers(2))
            part.role = role_of(given=not part.loss)
            if part.ids is not None and part.modality == "speech":
                part.grid = (1, len(part))
        rows.append(Row(document, bool(rng.integers(2))))
    return rows


def batch_of(rows, config, *, noised):
    spelt = [spell(r.document, config, close=r.is_closed, noised=noised) for r in rows]
    return assemble(spelt, config, pad_rows_to=4, indices=range(len(rows)))


def assert_same(a, b):
    assert torch.equal(a.ids, b.ids) and torch.equal(a.positions, b.positions) and a.lengths == b.lengths
    assert torch.equal(a.routing.to_towers, b.routing.to_towers) and a.counts == b.counts
    assert torch.equal(a.targets.ids, b.targets.ids) and torch.equal(a.targets.weight, b.targets.weight)
    assert a.latents.keys() == b.latents.keys()
    for name, group in a.latents.items():
        other = b.latents[name]
        assert torch.equal(group.values, other.values) and group.noised == other.noised
        assert [p.grids for p in group.places.values()] == [p.grids for p in other.places.values()]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("ends", ENDS, ids=str)
@pytest.mark.parametrize("later_sees", ["noised", "clean_copy"])
def test_the_same_batch(ends, left, later_sees):
    config = model_config(mel=True, later_sees=later_sees, position_axes=["time", "row", "column"], **ends)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rows = random_rows(rng, config)
        inputs = tensors_of(rows, config, with_labels=True, left=left)
        assert inputs["attention_mask"].sum() <= inputs["input_ids"].numel()
        again = rows_of(config, inputs["input_ids"], inputs["attention_mask"], inputs["labels"], inputs)
        assert_same(batch_of(rows, config, noised=True), batch_of(again, config, noised=True))
        assert [r.is_closed for r in again] == [r.is_closed or ends_itself(r, config) for r in rows]
        # without labels everything is given
        given = rows_of(config, inputs["input_ids"], inputs["attention_mask"], None, inputs)
        assert all(p.role == "understanding" and not p.loss for r in given for p in r.document.parts)
        assert sum(batch_of(given, config, noised=False).lengths) == int(inputs["attention_mask"].sum())


def ends_itself(row: Row, config) -> bool:
    last = row.document.parts[-1]
    return last.modality == "text" and int(last.ids[-1]) in config.layout.stops


@pytest.mark.parametrize("beside", [False, True])
def test_features_stand_where_they_were_read(beside):
    config = encoders.model_config(beside=beside)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows = [Row(d, True) for d in (encoders.interleaved(rng, i) for i in range(4))]
        for part in itertools.chain(*(r.document.parts for r in rows)):
            part.loss = 0.0 if part.role == "understanding" else 1.0
        inputs = tensors_of(rows, config, with_labels=True)
        again = rows_of(config, inputs["input_ids"], inputs["attention_mask"], inputs["labels"], inputs)
        assert_same(batch_of(rows, config, noised=True), batch_of(again, config, noised=True))


def test_what_does_not_fit():
    config = model_config(mel=True)
    mel = Part("mel", latents=np.zeros((4, 3), np.float32), grid=(2, 2))
    image = Part("image", ids=np.arange(3))
    rows = [Row(Document([Part("text", ids=np.arange(4)), image, mel]), True)]
    inputs = tensors_of(rows, config, with_labels=True)

    def refused(match, **changes):
        new = inputs | changes
        with pytest.raises((DataError, ValueError), match=match):
            rows_of(config, new["input_ids"], new["attention_mask"], new["labels"], new)

    ids, labels = inputs["input_ids"], inputs["labels"]
    at = {name: int((ids[0] == i).nonzero()[0]) for name, i in config.layout.opening.items() if (ids == i).any()}
    refused("row 0 does not begin with the id 20, which opens", input_ids=ids.roll(1))
    refused("row 0 opens an item of 'image' that it does not close", input_ids=changed(ids, at["image"] + 4, 1))
    refused(r"row 0 holds the id 21 \(<eos>\) where one of 'image' must stand",
            input_ids=changed(ids, at["image"] + 1, 21))  # fmt: skip
    refused(r"row 0 holds the id 9999 \(there are \d+ ids\) where", input_ids=changed(ids, 2, 9999))
    refused("an item of 'mel' holds ids, it must hold its opening id", input_ids=changed(ids, at["mel"] + 1, 1))
    refused("asks for more latents than mel_latents has", mel_latents=inputs["mel_latents"][:3])
    refused("mel_latents: 1 latents are left over", mel_latents=torch.zeros(5, 3))
    refused("of an item of 'image' .* some are -100 and some are not", labels=changed(labels, at["image"] + 1, IGNORED))
    refused(r"labels: \[1, 3\] is not allowed, it must be \[1, 17\], as input_ids", labels=labels[:, :3])


def changed(ids, at: int, value: int):
    new = ids.clone()
    new[0, at] = value
    return new


def test_other_latents_change_the_batch():
    """The comparison above can fail."""
    config = model_config(mel=True)
    rows = random_rows(np.random.default_rng(4), config)
    inputs = tensors_of(rows, config, with_labels=True)
    assert "mel_latents" in inputs
    moved = inputs | {"mel_latents": inputs["mel_latents"].roll(1, 0)}
    again = rows_of(config, moved["input_ids"], moved["attention_mask"], moved["labels"], moved)
    with pytest.raises(AssertionError):
        assert_same(batch_of(rows, config, noised=True), batch_of(again, config, noised=True))
