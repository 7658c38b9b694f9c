"""A conversation with a trained model: one question, a file of messages, or line by line (plait generate --chat)."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plait.common.errors import ConfigError, DataError
from plait.generate.pipeline import Pipeline, Sample


def chat(
    pipeline: Pipeline, text: str, parts: list[dict[str, str]], output: str | None, show: Callable[[Sample], None],
    **settings: Any,
) -> None:  # fmt: skip
    """Answer what ``text`` says: a question, the name of a .json file of messages, or "" for the lines that come in.

    ``parts`` are media that stand before the first question, ``settings`` those of `Pipeline.chat`. ``show`` is called
    with every answer.
    """
    parts = [_named(part, pipeline) for part in parts]
    if text.endswith(".json"):
        if parts:
            raise ConfigError(f"command line: --chat {text} says all that is given, leave out the other parts")
        show(pipeline.chat(_read(Path(text)), output, base=Path(text).parent, **settings))
        return
    messages: list[dict[str, Any]] = []
    for question in [text] if text else _lines():
        messages.append({"role": "user", "content": [*map(_item, parts), {"type": "text", "text": question}]})
        sample, parts = pipeline.chat(messages, output, **settings), []
        show(sample)
        messages.append(sample.message)


def _named(part: dict[str, str], pipeline: Pipeline) -> dict[str, str]:
    """Return a part by its key, which may have been called by its modality."""
    ((key, value),) = part.items()
    return {pipeline.codecs[key].key if key in pipeline.codecs else key: value}


def _item(part: dict[str, str]) -> dict[str, str]:
    ((key, value),) = part.items()
    return {"type": key, key: value}


def _lines() -> Iterator[str]:
    """Yield what is typed, or comes in from a pipe, line by line, up to an empty line or the end."""
    typed = sys.stdin.isatty()
    if typed:
        print("an empty line or Ctrl-D ends the conversation", file=sys.stderr)
    while True:
        try:
            line = input("> " if typed else "")
        except EOFError:
            return
        if not line.strip():
            return
        yield line


def _read(path: Path) -> Any:
    """Read a file of messages."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"--chat: there is no file {str(path)!r}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--chat: {str(path)!r} holds no messages in JSON ({error})") from None
