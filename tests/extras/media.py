"""Images and captions: prepared, trained on, made, shown in a report."""

from pathlib import Path

from PIL import Image

from plait.cli import main

folder = Path("photos")
folder.mkdir()
for number in range(24):
    colour = ("red", "green", "blue")[number % 3]
    Image.new("RGB", (16 + number, 20), colour).save(folder / f"{number:02}.png")
    (folder / f"{number:02}.txt").write_text(f"a {colour} wall, {number} wide")

assert main(["prepare", "photos.yaml"]) == 0
assert main(["train", "photos.yaml"]) == 0
assert main(["generate", "runs/photos", "--text", "a red wall", "--output", "image", "--out", "made"]) == 0
assert Image.open("made/image/0000-output0.png").size == (16, 16)
assert main(["report", "runs/photos"]) == 0
