"""Conversations as people keep them, read into one form: messages of texts and media, in order.

OpenAI's form is a list of ``{"role": "user", "content": "..."}``, whose content may be a list of items:
``{"type": "text", "text": ...}``, ``{"type": "image_url", "image_url": {"url": ...}}``, ``{"type": "image", ...}``,
``{"type": "input_audio", "input_audio": {"data": ..., "format": ...}}``, ``{"type": "audio", ...}``. LLaVA's form is a
list of ``{"from": "human", "value": "<image>\\nWhat is it?"}`` beside the images of the row, which the marks in the
texts stand for. Media are files, ``data:`` addresses or values; nothing is fetched. Every refusal is a DataError.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.common.errors import DataError, nearest, shown, unknown

ROLES = ("system", "developer", "user", "assistant", "tool")
FORMS = ("messages", "conversations")
"""Keys of a row that hold its messages; either may hold messages of either form."""

KINDS = ("image", "audio")
"""Kinds of media that conversations know by name, whatever their keys are."""

_ROLE_OF = {"human": "user", "gpt": "assistant"}  # LLaVA's names
_VALUES = ("url", "path")  # where an item says its media, besides under its own type
_DATA = re.compile(r"data:([\w.+-]+)/([\w.+-]+)[^,]*;base64,", re.ASCII)


@dataclass(frozen=True)
class Medium:
    """An image, a recording or another item that is no text."""

    key: str
    """Of its parts in a manifest."""
    value: Any
    """The path of a file, its bytes as {"bytes": ..., "path": name}, or the item itself."""


@dataclass
class Message:
    """What one side says in one turn."""

    role: str
    content: list[str | Medium]
    learned: bool
    """Whether it is a target: the assistant's, unless ``"weight": 0`` or ``"loss": false`` stands beside it."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What else a message has that a template may ask for, such as tool_calls."""


@dataclass
class Conversation:
    """Messages, what tools they may call, and what else the row has."""

    messages: list[Message]
    tools: list[Any] = field(default_factory=list)
    rest: dict[str, Any] = field(default_factory=dict)


def is_chat(row: Any) -> bool:
    """Say whether a row is a conversation rather than a list of parts."""
    return isinstance(row, dict) and "parts" not in row and any(form in row for form in FORMS)


def fields_of(words: Mapping[str, str]) -> list[str]:
    """Return the fields of a row that a conversation is read from; ``words`` as in `read_conversation`."""
    return [*FORMS, "tools", *(name for word in words for name in (word, f"{word}s"))]


def read_conversation(given: Any, words: Mapping[str, str]) -> Conversation:
    """Read a list of messages, or a row that holds one beside its media.

    ``words`` says by which words media are called here, as types of items, marks in texts and fields of the row, and
    which manifest key each stands for.
    """
    row = given if isinstance(given, dict) else {"messages": given}
    form = next((name for name in FORMS if name in row), None)
    if form is None:
        raise DataError(f"chat: {shown(given)} is not allowed, it must be a list of messages, or {{'messages': [...]}}")
    messages = row[form]
    if not isinstance(messages, list | tuple):
        raise DataError(f"{form}: {shown(messages)} is not allowed, it must be a list of messages")
    if not messages:
        raise DataError(f"{form}: it is empty, it needs at least one message")
    tools = row.get("tools") or []
    if not isinstance(tools, list):
        raise DataError(f"tools: {shown(tools)} is not allowed, it must be a list")
    media = _RowMedia(row, words, marked=any(isinstance(m, dict) and "from" in m for m in messages))
    read = [_message(k, message, media) for k, message in enumerate(messages, start=1)]
    media.check_all_taken()
    used = {form, *fields_of(words)[len(FORMS) :]}
    return Conversation(read, tools, {name: value for name, value in row.items() if name not in used})


class _RowMedia:
    """The media that stand beside the messages of a row: marks, and items without a value, take them in order."""

    def __init__(self, row: Mapping[str, Any], words: Mapping[str, str], *, marked: bool):
        self.words = words
        values = {word: [*_listed(row.get(word)), *_listed(row.get(f"{word}s"))] for word in words}
        self._left = {word: [_value(v, f"{word} {k}") for k, v in enumerate(values[word], 1)] for word in words}
        self._given = {word: len(items) for word, items in self._left.items()}
        self._asked = dict.fromkeys(words, 0)
        # in OpenAI's form, a mark is one only where the row has such media beside its messages
        self._marks = [word for word in words if self._given[word] or (marked and word in KINDS)]

    def take(self, word: str) -> Medium:
        """Return the next of the row's media of a word."""
        self._asked[word] += 1
        return Medium(self.words[word], self._left[word].pop(0) if self._left[word] else None)

    def marked(self, text: str) -> Iterator[str | Medium]:
        """Yield a text cut at its marks, such as <image>, with the media that they stand for."""
        if not self._marks:
            yield text
            return
        for k, piece in enumerate(re.split(f"<({'|'.join(map(re.escape, self._marks))})>", text)):
            yield self.take(piece) if k % 2 else piece

    def check_all_taken(self) -> None:
        """Refuse a row with more or fewer media than are asked for."""
        for word, asked in self._asked.items():
            if asked != self._given[word]:
                raise DataError(
                    f"{word}: the row has {self._given[word]}, but its messages have {asked} marks <{word}> or items "
                    "without a value, there must be one for each"
                )


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _message(k: int, message: Any, media: _RowMedia) -> Message:
    """Read the k-th message of either form."""
    where = f"message {k}"
    if not isinstance(message, dict):
        raise DataError(f"{where}: {shown(message)} is not allowed, it must be a mapping with a role and a content")
    others = {name: value for name, value in message.items() if value is not None}
    by = "from" if "from" in others else "role"
    said = others.pop(by, None)
    role = _ROLE_OF.get(said, said) if by == "from" and isinstance(said, str) else said
    if role not in ROLES:
        known = [*ROLES, *(_ROLE_OF if by == "from" else ())]
        hint = nearest(said, known) if isinstance(said, str) else ""
        raise DataError(f"{where}: {by} {shown(said)} is not allowed, it must be one of {', '.join(known)}{hint}")
    content = others.pop("value" if by == "from" else "content", None)
    if content is None and "tool_calls" not in others:
        raise DataError(f"{where}: it has no {'value' if by == 'from' else 'content'}, it needs one")
    items = _content(where, content, media)
    if content in ([], ()):
        raise DataError(f"{where}: its content is an empty list, it needs an item")
    return Message(role, items, role == "assistant" and _is_learned(where, others), others)


def _is_learned(where: str, fields: dict[str, Any]) -> bool:
    """Take out of a message what says whether it is a target."""
    weight, loss = fields.pop("weight", 1), fields.pop("loss", True)
    if weight not in (0, 1):
        raise DataError(f"{where}: weight {shown(weight)} is not allowed, it must be 0 or 1")
    if not isinstance(loss, bool):
        raise DataError(f"{where}: loss {shown(loss)} is not allowed, it must be true or false")
    return bool(weight) and loss


def _content(where: str, content: Any, media: _RowMedia) -> list[str | Medium]:
    if content is None:
        return []
    if isinstance(content, str):
        return [item for item in media.marked(content) if item != ""]
    if not isinstance(content, list | tuple):
        raise DataError(f"{where}: content {shown(content)} is not allowed, it must be text or a list of items")
    return [_item(f"{where}, item {k}", item, media) for k, item in enumerate(content, start=1)]


def _item(where: str, item: Any, media: _RowMedia) -> str | Medium:
    """Read one item of a content."""
    if not isinstance(item, dict):
        raise DataError(f"{where}: {shown(item)} is not allowed, it must be a mapping with a type")
    item = {name: value for name, value in item.items() if value is not None}  # as tables have them
    kind = item.get("type")
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise DataError(f"{where}: text {shown(item.get('text'))} is not allowed, it must be text")
        return str(item["text"])
    if kind == "input_audio":
        kind, item = "audio", {"audio": _input_audio(where, item.get("input_audio"))}
    word = kind.removesuffix("_url") if isinstance(kind, str) else None
    if word is None or word not in media.words:
        types = ["text", "image_url", "input_audio", *media.words]
        raise DataError(unknown(f"{where}: type", kind, types))
    value = next((item[name] for name in (kind, *_VALUES) if name in item), None)
    if kind != word and isinstance(value, dict):
        value = value.get("url")
    if value is None and kind == word:
        return media.take(word)
    return Medium(media.words[word], _value(value, where))


def _input_audio(where: str, value: Any) -> dict[str, Any]:
    """Return a recording that stands in an item itself."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), str):
        raise DataError(f'{where}: input_audio {shown(value)} is not allowed, it must be {{"data": base64, "format"}}')
    return _decoded(value["data"], f"audio.{value.get('format', 'wav')}", where)


def _value(value: Any, where: str) -> Any:
    """Return a medium's value: what a data: address holds, or the value as it is; nothing is ever fetched."""
    if value is None or (isinstance(value, str) and not value):
        raise DataError(f"{where}: it has no value, it must be the path of a file, or data:TYPE;base64,...")
    if not isinstance(value, str):
        return value
    if value.startswith("data:"):
        head = _DATA.match(value)
        if head is None:
            raise DataError(f"{where}: {shown(value[:40])} is not allowed, it must be data:TYPE;base64,...")
        return _decoded(value[head.end() :], f"{head[1]}.{head[2]}", where)
    if "://" in value:
        raise DataError(
            f"{where}: the address {shown(value)} is not allowed, as nothing is fetched; download the file and name "
            "it, or write it as data:TYPE;base64,..."
        )
    return value


def _decoded(text: str, name: str, where: str) -> dict[str, Any]:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: {name} is not base64 ({error})") from None
    if not data:
        raise DataError(f"{where}: {name} is empty")
    return {"bytes": data, "path": name}
