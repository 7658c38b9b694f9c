"""Adapters of one served model: each is a model by its name, and all share the batch."""

import concurrent.futures
import copy

import openai
import pytest
from helpers.adapters import random_adapter
from helpers.served import pixels_of, served, small_pipeline

from plait.cli import main
from plait.generate.pipeline import Pipeline
from plait.model.adapters import attach, merge_adapter


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """The pipeline of each model, by its name: adapters merged."""
    folder = tmp_path_factory.mktemp("models")
    base = small_pipeline(folder, chat=False)
    found = {"small": base}
    for seed, name in enumerate(("style", "other")):
        model = copy.deepcopy(base.model)
        merge_adapter(model, random_adapter(model, folder / name, seed))
        found[name] = Pipeline(model, base.codecs, base.config, base.diffusion)
    return found, {name: folder / name for name in found if name != "small"}


def test_each_name_answers_with_its_own(pipelines):
    pipelines, folders = pipelines
    plain = pipelines["small"]
    model = copy.deepcopy(plain.model)
    attach(model, folders)

    def ask(number: int) -> tuple[str, str, int, object]:
        name, kind = list(pipelines)[number % 3], ("text", "image")[number % 2]
        if kind == "image":
            answer = client.images.generate(model=name, prompt=f"a fox {number}", extra_body={"seed": number})
            return name, kind, number, pixels_of(answer.data[0].b64_json)
        said = [{"role": "user", "content": f"a fox {number}"}]
        answer = client.chat.completions.create(model=name, messages=said, seed=number, modalities=["text"])
        return name, kind, number, answer.choices[0].message.content

    with served(Pipeline(model, plain.codecs, plain.config, plain.diffusion)) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        assert [m.id for m in client.models.list()] == ["small", "style", "other"]
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(24)))
        with pytest.raises(openai.NotFoundError, match="'small' or 'style' or 'other'"):
            client.images.generate(model="stile", prompt="a fox")
    differs = 0
    for name, kind, number, answer in answers:
        own, other = (pipelines[n].generate(f"a fox {number}", kind, seed=number)[0].output[0][1]
                      for n in (name, "small"))  # fmt: skip
        assert (answer == own) if kind == "text" else (answer == own).all()
        differs += name != "small" and not ((answer == other) if kind == "text" else (answer == other).all())
    assert differs > 6


def test_what_the_command_refuses(pipelines, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for words, code, sentence in (
        (["--adapter", "style"], 2, "--adapter: 'style' is not allowed, it must be of the form NAME=FOLDER"),
        (["--adapter", "model=x"], 2, "--adapter: 'model' is not allowed, it must be a name that nothing else"),
    ):
        assert main(["serve", str(tmp_path / "model"), *words]) == code
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1, said
    assert main(["playground", "a", "b", "--adapter", "style=x"]) == 2
    assert "given with one model" in capsys.readouterr().err
