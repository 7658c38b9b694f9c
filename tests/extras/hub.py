"""A model by its name on the Hub."""

from plait.cli import main

assert main(["generate", "maria/letters", "--text", "a fox", "--output", "text"]) == 0
