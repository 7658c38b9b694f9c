"""Figures of texts, features of images, and what is heard."""

import numpy as np

from plait.evaluate.extractors import extractor
from plait.evaluate.measures import PACKAGES, package
from plait.evaluate.recogniser import recognise
from plait.evaluate.texts import error_measures, text_measures

said, references = ["a red fox", "two owls"], ["a red fox", "three owls"]
figures = text_measures(said, references) | error_measures(said, references)
assert figures["exact"].value == 0.5 and figures["wer"].value == 0.2
images = [np.full((40, 40, 3), value, np.uint8) for value in (0, 255)]
assert extractor("efficientnet-lite0").features(images).shape == (2, 1280)
assert recognise([np.zeros(8000, np.float32)], ["a red fox"]) in ([""], ["a red fox"])
for module in PACKAGES:
    if module not in ("mujoco", "highway_env"):
        package(module)
