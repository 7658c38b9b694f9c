"""The decoding benchmark, small: it writes the rows that it promised, and its dense decoder is what it stands for."""

import importlib
from argparse import Namespace

import torch
from helpers.dense_copies import copy_to_dense, in_sequence

from plait.batch.assemble import Run, assemble

decoding, harness = (importlib.import_module(name) for name in ("decoding", "harness"))


def test_the_smallest_grid_writes_every_row(tmp_path, capsys):
    arguments = ["--grid", "tiny", "--turns", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert decoding.main(arguments) == 0
    (path,) = tmp_path.glob("*.json")
    rows = {row["name"]: row["value"] for row in harness.read_rows(path)}
    assert all(value > 0 for value in rows.values()) and len(rows) == 23
    assert rows["decode/speedup/d64-l1/rows1"] == 1.0
    tokens = [rows[f"decode/tokens_per_second/d64-l1/rows{n}"] for n in (4, 1)]
    assert abs(rows["decode/speedup/d64-l1/rows4"] / (tokens[0] / tokens[1]) - 1) < 1e-9
    capsys.readouterr()
    decoding.main(arguments)
    assert capsys.readouterr().out == ""  # all is there


def test_the_dense_decoder_computes_what_plait_computes():
    bench = decoding.Bench(64, 2, Namespace(device="cpu", grid="tiny"))
    bench.dtype = torch.float64
    model, decoder = bench.model(1), decoding.DenseDecoder(bench, 2)
    decoder.model.load_state_dict(copy_to_dense(model, "text").state_dict())
    decoder.length = 0
    fed, scores = [], []
    for _ in range(5):
        fed.append(decoder.ids)
        decoder.step()
        scores.append(decoder.logits)
    batch = assemble([[Run("text", ids.numpy())] for ids in torch.stack(fed, 1)], model.config)
    hidden = in_sequence(model(batch), batch)
    expected = (hidden @ model.head["text"].weight.T).unflatten(0, (2, 5)).transpose(0, 1)
    torch.testing.assert_close(torch.stack(scores), expected, rtol=0, atol=1e-10)
