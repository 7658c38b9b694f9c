"""The page to play with in a real browser: type, add an image and a clip, stream, stop, compare."""

import contextlib
import io
import json
import time

import numpy as np
import pytest
import soundfile
from helpers.served import served, served_models, small_pipeline
from PIL import Image


@pytest.fixture(scope="module", params=["flow", "tokens"])
def pipeline(request, tmp_path_factory):
    return small_pipeline(tmp_path_factory.mktemp("model"), chat=False, tokens=request.param == "tokens")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run's folder with two samples of its report."""
    run = tmp_path_factory.mktemp("run")
    (run / "samples" / "image").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(run / "samples" / "image" / "0.png")
    text, image = {"modality": "text", "text": "a red thing"}, {"modality": "image", "file": "image/0.png"}
    records = [{"task": "text>image", "prompt": [text], "output": [image]},
               {"task": "image>text", "prompt": [image], "output": [text]}]  # fmt: skip
    (run / "samples" / "samples.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return run


@pytest.fixture(scope="module")
def address(pipeline, run_folder):
    with served(pipeline, run=run_folder) as where:
        yield where


def until(browser, condition: str, seconds: float = 30.0):
    """Wait for a condition of the page, and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := browser.run(condition):
            return value
        time.sleep(0.05)
    raise AssertionError(f"never true: {condition}; the page says {browser.run('document.body.innerText')[:2000]}")


def open_page(browser, address: str, **settings) -> None:
    browser.open(address, **settings)
    until(browser, "!document.getElementById('go').disabled")


def ask(browser, text: str, make: str) -> None:
    browser.run(f"""document.querySelector('[name=make][value="{make}"]').click();
        document.getElementById("text").value = {json.dumps(text)}; document.getElementById("go").click()""")


DONE = "document.querySelector('.result .foot')?.childElementCount > 0"


def test_it_says_what_the_model_does(browser, address):
    open_page(browser, address)
    assert browser.run("document.getElementById('about').textContent") == (
        "small reads text, images and speech, and makes text, images and speech."
    )
    makes = browser.run("[...document.querySelectorAll('#make label')].map((l) => l.textContent)")
    assert makes == ["image", "speech", "text", "you choose"]
    assert browser.problems(address) == []


def test_an_image_forms_and_can_be_made_again(browser, address):
    open_page(browser, address)
    browser.run("document.querySelector('[name=seed]').value = 5")
    ask(browser, "a fox", "image")
    until(browser, DONE)
    first = browser.run("document.querySelector('.result figure:not(.forming) img').src")
    assert first.startswith("data:image/png;base64,")
    browser.run("[...document.querySelectorAll('.foot button')].find((b) => b.textContent === 'Again').click()")
    until(browser, f"document.querySelectorAll('.result').length === 2 && {DONE}")
    assert browser.run("document.querySelector('.result img').src") == first
    assert "seed 5" in browser.run("document.querySelector('.foot').textContent")
    curl = browser.run("curlOf({messages: [{role: 'user', content: \"it's\"}], seed: 5})")
    assert curl.startswith(f"curl {address}/v1/chat/completions") and "it'\\''s" in curl
    assert browser.problems(address) == []


def test_what_is_copied_as_python_runs(browser, address, pipeline):
    steps = ", num_inference_steps: 3" if pipeline.config.sampling else ""  # of models that denoise alone
    open_page(browser, address)
    code = browser.run("pythonOf({messages: [{role: 'user', content: 'a \"fox\"'}], modalities: ['text'], seed: 5, "
                       f"temperature: 0.5{steps}}})")  # fmt: skip
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "copied", "exec"), {})
    assert said.getvalue().strip()


def test_an_image_and_a_clip_are_added(browser, address, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "fox.png")
    soundfile.write(tmp_path / "fox.wav", np.sin(np.arange(1600) / 9), 16000)
    (tmp_path / "fox.txt").write_text("no media")
    open_page(browser, address)
    browser.call("DOM.enable")
    browser.run("document.getElementById('text').value = 'before'")
    for name, count in (("fox.png", 2), ("fox.wav", 3)):
        browser.choose("#file", tmp_path / name)
        until(browser, f"document.querySelectorAll('#parts .part').length === {count}")
    browser.choose("#file", tmp_path / "fox.txt")
    assert "fox.txt: this model reads" in until(browser, "document.getElementById('problem').textContent")
    ask(browser, "after", "text")
    until(browser, DONE)
    assert browser.run("document.querySelectorAll('.asked img, .asked audio').length") == 2
    assert browser.run("document.querySelector('.answer p').textContent").strip()
    browser.run("document.querySelector('#parts button').click()")
    assert browser.run("document.querySelectorAll('#parts .part').length") == 2
    assert browser.problems(address) == []


def test_sound_is_recorded(browser, address):
    open_page(browser, address)
    browser.run("document.getElementById('record').click()")
    until(browser, "document.getElementById('record').textContent.includes('Stop')")
    time.sleep(0.7)
    browser.run("document.getElementById('record').click()")
    until(browser, "document.querySelectorAll('#parts audio').length === 1")
    clip = browser.run("fetch(document.querySelector('#parts audio').src).then((r) => r.arrayBuffer())"
                       ".then((b) => Array.from(new Uint8Array(b)))")  # fmt: skip
    samples, rate = soundfile.read(io.BytesIO(bytes(clip)))
    assert 0.2 < len(samples) / rate < 10
    ask(browser, "", "text")
    until(browser, DONE)
    assert browser.run("document.querySelectorAll('.asked audio').length") == 1
    assert browser.run("document.querySelector('.answer p').textContent").strip()
    assert browser.problems(address) == []


@pytest.mark.parametrize(
    ("make", "begun", "settings"),
    [
        ("image", ".result figure.forming", {"steps": 1000}),
        ("text", ".result .answer p", {"tokens": True, "longest": 400}),
    ],
)
def test_it_can_be_stopped(browser, tmp_path, make, begun, settings):
    with served(small_pipeline(tmp_path, chat=False, **settings)) as address:
        open_page(browser, address)
        browser.run("document.querySelector('[name=temperature]').value = 0")
        ask(browser, "a fox", make)
        until(browser, f"Boolean(document.querySelector('{begun}'))")
        assert browser.run("document.getElementById('go').textContent") == "Stop"
        browser.run("document.getElementById('go').click()")
        until(browser, DONE)
        assert "stopped" in browser.run("document.querySelector('.foot').textContent")
        assert browser.problems(address) == []


def test_what_is_refused_is_shown(browser, address):
    open_page(browser, address)
    browser.run("document.querySelector('[name=max_tokens]').value = 3; document.querySelector('[name=n]').value = 2")
    ask(browser, "x" * 4000, "text")
    assert "below 512 tokens" in until(browser, "document.getElementById('problem').textContent")
    assert browser.run("document.querySelectorAll('.result').length") == 0
    ask(browser, "", "text")
    assert until(browser, "document.getElementById('problem').textContent") == "Say what to make first."


def test_samples_of_the_run_give_their_prompts(browser, address):
    open_page(browser, address)
    assert until(browser, "document.querySelectorAll('.sample').length") == 2
    browser.run("document.querySelectorAll('.sample button')[1].click()")
    until(browser, "document.querySelectorAll('#parts img').length === 1")
    assert browser.run("document.querySelector('[name=make]:checked').value") == "text"
    browser.run("document.querySelectorAll('.sample button')[0].click()")
    assert browser.run("document.getElementById('text').value") == "a red thing"
    assert browser.problems(address) == []


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits(browser, address, width, dark):
    open_page(browser, address, width=width, dark=dark)
    ask(browser, "a fox", "image")
    until(browser, DONE)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.problems(address) == []


def test_two_models_answer_beside_one_another(browser, pipeline, tmp_path):
    models = {"before": lambda: pipeline, "after": lambda: small_pipeline(tmp_path, chat=False)}
    with served_models(models) as address:
        open_page(browser, address)
        ask(browser, "a fox", "text")
        until(browser, DONE)
        assert browser.run("[...document.querySelectorAll('.side h3')].map((h) => h.textContent)") == [
            "before",
            "after",
        ]
        assert browser.run("document.querySelectorAll('.side .answer').length") == 2
        assert browser.problems(address) == []
