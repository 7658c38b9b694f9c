"""Conversations as a language model reads them: its own chat template writes them, and the text is cut into pieces.

The template writes the whole conversation as one text, with a sign in place of each image or recording. The text is cut
at the signs, so that texts and media stand in order, and at the edges of what the assistant says, which alone is
learned. An answer begins where the template would let the model answer the messages before it, and ends with the mark
that ends a turn, such as <|im_end|>: that is how the model learns to stop. The pieces put together are what the
template wrote. Nothing is read or fetched here.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.codecs.base import Codec, remark
from plait.codecs.chat_messages import KINDS, Conversation, Medium, fields_of, read_conversation
from plait.common.errors import DataError, first_line, printable, shown

LEFT_OUT = "chats of which the messages after the last learned answer were left out"

_SIGNS = range(0xE000, 0xF900)  # code points that stand for nothing
_EXAMPLE = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]


@dataclass(frozen=True)
class Piece:
    """A text or an item of a conversation."""

    key: str
    """Of its parts in a manifest."""
    value: Any
    learned: bool = False


class Chat:
    """Reads conversations with the chat template of a tokenizer.

    ``key`` is the manifest key of texts, ``stops`` are the ids that end a text, and ``words`` say which key each kind
    of media has (`plait.codecs.chat_messages.read_conversation`).
    """

    def __init__(self, tokenizer: Any, stops: Iterable[int], key: str, words: Mapping[str, str]):
        self._tokenizer, self._key, self._words = tokenizer, key, words
        self._stops = [tokenizer.convert_ids_to_tokens(i) for i in sorted({*stops, *turn_ends(tokenizer)})]

    @property
    def fields(self) -> list[str]:
        """The fields of a row that are read."""
        return fields_of(self._words)

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of a conversation as a row of parts, of which only those of the assistant carry loss."""
        conversation = read_conversation(row, self._words)
        parts = [
            {piece.key: piece.value} if piece.learned else {piece.key: piece.value, "loss": False}
            for piece in self.document(conversation)
        ]
        meta = conversation.rest.pop("meta", None) or {}
        if not isinstance(meta, dict):
            raise DataError(f"meta: {shown(meta)} is not allowed, it must be a mapping")
        return {"parts": parts, "meta": conversation.rest | meta}

    def prompt(self, given: Any) -> list[Piece]:
        """Return a conversation, or a row that holds one, up to where the assistant has to speak."""
        conversation = read_conversation(given, self._words)
        if conversation.messages[-1].role == "assistant":
            raise DataError("messages: the last one is the assistant's, it must be one that is to be answered")
        sign = self._sign_for(conversation)
        return self._cut(self._written(conversation, sign, ask=True), [], _media_of(conversation), sign)

    def document(self, conversation: Conversation) -> list[Piece]:
        """Return a conversation up to the end of the last answer that is learned; what follows it teaches nothing."""
        messages = conversation.messages
        last = max((k for k, message in enumerate(messages, start=1) if message.learned), default=0)
        if not last:
            raise DataError("messages: none is the assistant's and learned, at least one must be")
        if messages[0].learned:
            raise DataError("messages: the first one is the assistant's, it must be one that is answered")
        if last < len(messages):
            remark(LEFT_OUT)
        conversation = Conversation(messages[:last], conversation.tools)
        sign = self._sign_for(conversation)
        text = self._written(conversation, sign)
        answers = self._answers(conversation, text, sign)
        return self._cut(text[: answers[-1][1]], answers, _media_of(conversation), sign)

    # -- the template -------------------------------------------------------------------------------------------

    def _sign_for(self, conversation: Conversation) -> str:
        """Return a character that stands for media: one that no text holds. Refuses texts that would end a turn."""
        contents = (message.content for message in conversation.messages)
        texts = ["".join(item if isinstance(item, str) else "\n" for item in content) for content in contents]
        for stop in self._stops:
            if any(stop in text for text in texts):
                raise DataError(f"messages: a text holds {stop!r}, which ends a turn of this model, take it out")
        held = set().union(*texts)
        sign = next((chr(code) for code in _SIGNS if chr(code) not in held), "")
        if not sign:
            raise DataError("messages: their texts hold every code point for private use, one must be free")
        return sign

    def _written(self, conversation: Conversation, sign: str, *, count: int | None = None, ask: bool = False) -> str:
        """Return the first ``count`` messages (None: all) as the template writes them; ``ask`` has the model answer."""
        number = itertools.count()
        written = [
            message.fields
            | {
                "role": message.role,
                "content": "".join(c if isinstance(c, str) else f"{sign}{next(number)}{sign}" for c in message.content),
            }
            for message in conversation.messages[:count]
        ]
        tools = conversation.tools or None
        try:
            text = self._tokenizer.apply_chat_template(written, tools=tools, add_generation_prompt=ask, tokenize=False)
        except Exception as error:  # templates raise what they like
            reason = printable(first_line(error))
            raise DataError(f"messages: the model's chat template refuses them ({reason})") from None
        if [int(k) for k in re.findall(f"{sign}([0-9]+){sign}", text)] != list(range(next(number))):
            raise DataError(
                "messages: the model's chat template drops or reorders their media, it must keep them in order"
            )
        return str(text)

    def _answers(self, conversation: Conversation, text: str, sign: str) -> list[tuple[int, int]]:
        """Return where each answer that is learned begins and ends in the text of the conversation."""
        learned = [k for k, message in enumerate(conversation.messages) if message.learned]
        starts = []
        for k in learned:
            before = self._written(conversation, sign, count=k, ask=True)
            if not text.startswith(before):
                raise DataError(
                    f"messages: this model's chat template writes what stands before message {k + 1}, an answer, "
                    "otherwise than when it asks for it, so that no part of the text is the answer; make a row for "
                    "each answer, with the answer as its last message"
                )
            starts.append(len(before))
        limits = [*starts[1:], len(text)]
        ends = [self._end(conversation, k, text, span, sign) for k, span in zip(learned, zip(starts, limits))]
        return list(zip(starts, ends, strict=True))

    def _end(self, conversation: Conversation, k: int, text: str, span: tuple[int, int], sign: str) -> int:
        """Return where message ``k``, an answer within a span of the text, ends: behind what ends its turn."""
        ends = [at + len(stop) for stop in self._stops if (at := text.find(stop, *span)) >= 0]
        if ends:
            return min(ends)
        whole = self._written(conversation, sign, count=k + 1)
        if span[0] < len(whole) <= span[1] and text.startswith(whole):
            return len(whole)
        marks = ", ".join(map(repr, self._stops)) or "the tokenizer has none"
        raise DataError(
            f"messages: this model's chat template puts no mark of its end ({marks}) behind message {k + 1}, an "
            "answer; take a tokenizer whose eos_token is the mark that the template writes"
        )

    def _cut(self, text: str, spans: Sequence[tuple[int, int]], media: Sequence[Medium], sign: str) -> list[Piece]:
        """Cut a text at the edges of spans, which are learned, and at the signs that stand for media."""
        edges = sorted({0, len(text), *itertools.chain(*spans)})
        pieces = []
        for start, stop in itertools.pairwise(edges):
            learned = any(first <= start < last for first, last in spans)
            for k, cut in enumerate(re.split(f"{sign}([0-9]+){sign}", text[start:stop])):
                if k % 2:
                    pieces.append(Piece(media[int(cut)].key, media[int(cut)].value, learned))
                elif cut:
                    pieces.append(Piece(self._key, cut, learned))
        return pieces


def _media_of(conversation: Conversation) -> list[Medium]:
    return [item for message in conversation.messages for item in message.content if isinstance(item, Medium)]


def turn_ends(tokenizer: Any) -> list[int]:
    """Return the id that a tokenizer's chat template ends an answer with, where it is one that stands for no text."""
    try:
        text = tokenizer.apply_chat_template(_EXAMPLE, add_generation_prompt=False, tokenize=False)
        ids = tokenizer(text[text.rindex("answer") + 6 :], add_special_tokens=False)["input_ids"]
    except Exception:  # of a template that wants other messages; then what the model's files say must do
        return []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [i for i in ids if i in special][:1]


def chat_of(codecs: Mapping[str, Codec]) -> Chat | None:
    """Return what reads conversations: the first text codec's tokenizer, where that has a chat template, else None."""
    codec = next((codec for codec in codecs.values() if codec.kind == "text"), None)
    tokenizer = getattr(codec, "tokenizer", None)
    if codec is None or not getattr(tokenizer, "chat_template", None):
        return None
    media = [other for other in codecs.values() if other.kind != "text" and not other.reads]
    words = {other.key: other.key for other in media}
    for kind in KINDS:
        keys = [other.key for other in media if other.kind == kind]
        if len(keys) < 2:  # of several, one must be named
            words.setdefault(kind, keys[0] if keys else kind)
    stops = [i for i in (getattr(codec, "eos", None), *getattr(codec, "stops", ())) if isinstance(i, int)]
    return Chat(tokenizer, stops, codec.key, words)
