"""The notebooks run from their first cell to their last, as a reader runs them, and are stored without outputs."""

import os
import re
import sys
from pathlib import Path

import pytest
from helpers import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = ROOT / "notebooks"
NAMES = ["build_a_mixture", "read_a_study", "train_on_your_folder"]
MACHINE = re.compile(r"(?<![\w.:/])(?:/(?:home|root|tmp|usr|opt|mnt|var|work|workspace|Users)/|[A-Z]:\\)")
"""What begins an absolute path."""


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """Run a notebook in an empty folder with this checkout's `plait`, then a cell of checks on its variables.

    ``changes`` are texts of its cells with what stands in their place.
    """
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel shows figures inline
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")}
    reader = tmp_path / "reader"
    reader.mkdir()

    def execute(name: str, checks: str, changes: dict[str, str] | None = None):
        notebook = read(name)
        for text, other in (changes or {}).items():
            (cell,) = (cell for cell in notebook.cells if text in cell.source)
            cell.source = cell.source.replace(text, other)
        notebook.cells.append(nbformat.v4.new_code_cell(checks))
        where = {"metadata": {"path": str(reader)}}
        client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300, resources=where)
        client.execute(env=os.environ | own)
        return notebook

    return execute


def shown(notebook, kind: str) -> list[str]:
    """Return what the cells displayed of a MIME type, in order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def printed(notebook) -> str:
    """Return what the cells printed."""
    return "".join(o["text"] for c in notebook.cells for o in c.get("outputs", []) if o["output_type"] == "stream")


BUILT = """
losses = np.array(history)
assert losses.shape == (STEPS, 3) and (losses[-10:].mean(0) < 0.1 * losses[:10].mean(0)).all(), losses[[0, -1]]
assert difference < 1e-10
assert images_right > 0.8 and names_right > 0.8, (images_right, names_right)
"""


def test_a_mixture_is_built_and_trained(executed):
    notebook = executed("build_a_mixture", BUILT)
    assert len(shown(notebook, "image/png")) == 4
    assert "blocks.0.qkv.speech.weight [192, 64]" in printed(notebook)


TRAINED = """
assert losses["text"][-1][1] < 0.5 * losses["text"][0][1], losses
assert sum(y for _, y in losses["image"][-2:]) < sum(y for _, y in losses["image"][:2]), losses
assert set(held_out) == {"val_loss/validation/text", "val_loss/validation/image"}, held_out
assert len(images) == len(prompts) and all(image.shape == (64, 64, 3) and image.std() > 0 for image in images)
assert len(captions) == len(given) and all(captions), captions
"""


def test_a_folder_is_trained_on(executed):
    """For a number of steps, as what becomes of minutes depends on the machine."""
    notebook = executed("train_on_your_folder", TRAINED, {"--train.minutes $2": "--train.minutes 0 --train.steps 30"})
    assert len(shown(notebook, "image/png")) == 4  # the folder, losses, images, captions
    (sample,) = shown(notebook, "text/html")
    assert "a red circle" in sample and "<img" in sample


STUDIED = """
assert [(run["arm"], run["status"]) for run in results["runs"]] == [("dense", "finished"), ("mot", "finished")]
assert set(matches) == {"text", "image"} and all(row["points"] for row in matches.values()), matches
for arm in ("dense", "mot"):
    (log,) = (out / "runs" / arm).glob("*/seed-0/metrics.jsonl")
    curves = [held_out(read_log(log), modality)[1] for modality in matches]
    assert all(losses[-1] < losses[0] for losses in curves), curves
"""


@pytest.mark.docs
def test_a_study_is_run_and_read(executed):
    notebook = executed("read_a_study", STUDIED)
    assert len(shown(notebook, "image/png")) == 2
    study, verdicts = shown(notebook, "text/markdown")
    assert "## Step matching" in study and "| mot | dense | validation | image |" in study
    assert re.findall(r"^\| (\d+) \|", verdicts, re.MULTILINE) == [str(number) for number in range(1, 11)]
    assert re.search(r"mot-0 +dense-0 +validation +image +0\.\d", printed(notebook))  # of the kept logs


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored(name):
    """A valid notebook of the form that has ids of cells, for any Python 3, without outputs or places of a machine."""
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.id
    assert MACHINE.findall((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    texts = [cell.source for cell in read(name).cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)#]+)", text)]
    assert links and [link for link in links if not (FOLDER / link).exists()] == []
