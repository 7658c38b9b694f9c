"""A modality that no batch can teach stops training with one sentence; what is skipped is counted."""

import itertools

import numpy as np
import pytest
from helpers.fake_data import run_config, write_folder
from helpers.prepared import config_for

from plait.batch.documents import Document, Part
from plait.common.errors import DataError
from plait.common.progress import QuietProgress
from plait.config.run import TrainConfig
from plait.data.loader import Loader, open_task_sources
from plait.data.loader import _Packer as Packer
from plait.data.recent import RecentDocuments
from plait.data.shards import ShardSource
from plait.data.sources import resolve_vocabulary
from plait.data.targets import check_targets, too_long_item
from plait.prepare.stages import prepare
from plait.train.metrics import read_metrics
from plait.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("fake_codecs")


def captioned(i: int, side: int = 16, words: int = 10) -> Document:
    rng = np.random.default_rng(i)
    image = Part("image", rng.integers(0, 64, side * side), grid=(side, side))
    return Document([Part("text", rng.integers(0, 256, words)), image])


def folder_of(path, documents):
    return write_folder(path, {"train": documents})


@pytest.mark.parametrize("policy", ["split", "truncate", "skip"])
@pytest.mark.parametrize("limit", ["data.batch_tokens", "data.max_document_tokens", "model.max_positions"])
def test_images_that_never_fit_stop_training(tmp_path, policy, limit):
    """Images of 256 tokens with room for 256: all vanished, and the text loss alone went on."""
    folder = folder_of(tmp_path, [captioned(i) for i in range(20)])
    needed = 260 + (0 if policy == "split" else 10)

    def config(most):
        sizes = {"batch_tokens": 1024, "max_document_tokens": 0, "max_positions": 1024}
        return run_config(folder, ("text", "image"), too_long=policy, **sizes | {limit.partition(".")[2]: most})

    for most in (256, needed - 1):
        with pytest.raises(DataError) as error:
            check_targets(resolve_vocabulary(config(most)))
        said = str(error.value)
        assert "no part 'image' fits in a batch" in said and "one has 256 tokens" in said and f"have {most}" in said
        assert f"set {limit} to at least {needed}," in said, said
    check_targets(resolve_vocabulary(config(needed)))
    batches = list(itertools.islice(Loader(config(needed)), 9))
    assert all(sum(batch.counts[m] for batch, _ in batches) > 0 for m in range(2))


def test_training_stops_before_its_first_step(tmp_path):
    folder = folder_of(tmp_path / "data", [captioned(i) for i in range(20)])
    config = run_config(folder, ("text", "image"), batch_tokens=256)
    config.out, config.train = str(tmp_path / "run"), TrainConfig(steps=3, device="cpu")
    with pytest.raises(DataError, match=r"no part 'image' fits in a batch.*data\.batch_tokens to at least 260, or"):
        Trainer(config, QuietProgress()).run()
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_one_document_that_fits_is_enough_and_the_others_are_counted(tmp_path):
    documents = [captioned(i) for i in range(30)] + [captioned(99, side=4)]
    config = run_config(folder_of(tmp_path / "data", documents), ("text", "image"), batch_tokens=128)
    config.out, config.train = str(tmp_path / "run"), TrainConfig(steps=12, device="cpu", log_every=4)
    lines = []
    progress = QuietProgress()
    progress.print = lines.append
    Trainer(config, progress).run()
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "parts_skipped" in row]
    assert rows and rows[-1]["parts_skipped"] >= 30
    assert any("parts stood in no batch" in line and "data.batch_tokens" in line for line in lines)


def test_every_policy_counts_the_parts_that_stand_nowhere(tmp_path):
    folder = folder_of(tmp_path, [captioned(i) for i in range(10)])
    for policy, parts in (("split", 10), ("truncate", 10), ("skip", 20)):
        config = resolve_vocabulary(run_config(folder, ("text", "image"), batch_tokens=200, too_long=policy))
        packer, places = Packer(config, open_task_sources(config, "train", {})), np.arange(10)
        window = packer.window(np.zeros_like(places), np.zeros_like(places), places)
        assert window.counts["parts_skipped"] == parts, policy


def test_a_modality_that_no_document_has(tmp_path):
    folder = folder_of(tmp_path, [Document([Part("text", np.arange(9))])] * 5)
    config = resolve_vocabulary(run_config(folder, ("text", "image")))
    with pytest.raises(DataError, match=r"no document of .* has a part 'image'.*loss_weight: 0"):
        check_targets(config)
    config.modalities["image"].loss_weight = 0.0
    assert check_targets(config) == []


def test_a_modality_that_no_task_predicts_is_said(tmp_path):
    folder = folder_of(tmp_path, [captioned(i) for i in range(5)])
    config = resolve_vocabulary(run_config(folder, ("text", "image", "speech"), tasks={"text,image": 1.0}))
    assert check_targets(config) == ["speech: none of data.tasks predicts it, so that it gets no target"]


def test_what_a_task_gives_can_be_left_unlearnt(tmp_path):
    """``data.given_loss: false`` teaches a task's last part alone, with the same tokens in the same batches."""
    folder = folder_of(tmp_path, [captioned(i) for i in range(20)])
    seen = {}
    for learnt in (True, False):
        config = resolve_vocabulary(run_config(folder, ("text", "image"), tasks={"image,text": 1.0}, given_loss=learnt))
        said = check_targets(config)
        assert said == ([] if learnt else ["image: none of data.tasks predicts it, so that it gets no target"])
        seen[learnt] = list(itertools.islice(Loader(config), 5))
    for (batch, _), (alone, _) in zip(seen[True], seen[False], strict=True):
        assert batch.ids.equal(alone.ids) and [s.role for s in batch.spans] == [s.role for s in alone.spans]
        assert alone.counts[0] > 0 and batch.counts[1] > 0 == alone.counts[1]
        assert all(p.loss == (p.modality == "text") for d in alone.documents for p in d.parts)


def test_prepare_says_that_images_do_not_fit(tmp_path):
    """A fake image has 16 tokens."""
    from helpers.inputs import write_lines

    lines = []
    progress = QuietProgress()
    progress.print = lines.append
    config = config_for(tmp_path / "data", write_lines(tmp_path, range(12)), ("text", "image"))
    config.data.batch_tokens = 19
    prepare(config, progress=progress)
    (said,) = [line for line in lines if line.startswith("image: an item has 16 tokens and needs documents of 20")]
    assert "data.batch_tokens to at least 20" in said
    config.data.batch_tokens = 20
    assert too_long_item("image", 16, config) == ""


def bytes_read(tmp_path, monkeypatch, tokens: int) -> int:
    """Return the bytes of a shard that are read for all pieces of one long text."""
    folder = folder_of(tmp_path / str(tokens), [Document([Part("text", np.arange(tokens) % 256)])])
    config = run_config(folder, ("text", "image", "speech"), batch_tokens=128, num_workers=2)
    total, raw = [0], ShardSource._file

    class Counted:
        def __init__(self, file):
            self.file = file

        def read(self, store, place, length):
            values = self.file.read(store, place, length)
            total[0] += values.nbytes
            return values

    monkeypatch.setattr(ShardSource, "_file", lambda self, shard: Counted(raw(self, shard)))
    pieces, text = 0, []
    with_loader = iter(Loader(config))
    for batch, _ in with_loader:
        for document in batch.documents:
            if document.epoch > 0:
                with_loader.close()
                break
            pieces += 1
            text.append((document.index, document.parts[0].ids))
        if batch.documents[-1].epoch > 0 or sum(len(ids) for _, ids in text) == tokens:
            break
    with_loader.close()
    monkeypatch.undo()
    assert pieces > tokens / 128
    whole = np.concatenate([ids for _, ids in sorted(text, key=lambda piece: piece[0])])
    assert (whole == np.arange(tokens) % 256).all()
    return total[0]


def test_a_document_in_pieces_is_read_once(tmp_path, monkeypatch):
    """Read whole for each piece, twice the length is four times the bytes."""
    short, long = (bytes_read(tmp_path, monkeypatch, tokens) for tokens in (8_000, 16_000))
    assert short <= 2 * 2 * 8_000 and long <= 2.2 * short  # two bytes an id; the next epoch may be under way


def test_documents_are_kept_within_bounds():
    read = []

    def document(source, number):
        read.append(number)
        return Document([Part("text", np.zeros(100, np.int64))])

    recent = RecentDocuments(document, limit=2000)
    for number in (1, 2, 1, 3, 1, 2, 2):
        recent.get(0, number)
    assert read == [1, 2, 3, 2] and len(recent._found) == 2
    large = RecentDocuments(document, limit=10)
    assert [large.get(0, 5) is large.get(0, 5), len(large._found)] == [True, 1]


def test_a_document_that_cannot_be_read_is_tried_again():
    tries = []

    def document(source, number):
        tries.append(number)
        raise DataError("damaged")

    recent = RecentDocuments(document)
    for _ in range(2):
        with pytest.raises(DataError, match="damaged"):
            recent.get(0, 1)
    assert tries == [1, 1]
