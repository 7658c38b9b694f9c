"""Conversations of both forms, written by a chat template and cut: what is learned, and what is refused."""

import base64

import numpy as np
import pytest
from helpers.chat import ALTERNATING, CHATML, LLAMA, SYSTEM_LAST, THINKING, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.codecs.base import remarks
from plait.codecs.chat import LEFT_OUT, Chat, chat_of, turn_ends
from plait.codecs.chat_messages import is_chat, read_conversation
from plait.codecs.image_pixels import ImagePixelCodec, ImagePixelOptions
from plait.codecs.text import BytePairCodec, BytePairOptions
from plait.common.errors import DataError

WORDS = {"image": "image", "audio": "audio", "depth": "depth"}
GIVEN = {"loss": False}


def chat(template=CHATML, **settings) -> Chat:
    tokenizer = chat_tokenizer(template, **settings)
    return Chat(tokenizer, [tokenizer.eos_token_id], "text", WORDS)


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content, **more) -> dict:
    return {"role": "assistant", "content": content} | more


def parts(messages, template=CHATML, **row) -> list:
    return chat(template).row({"messages": messages, **row})["parts"]


# -- what is learned ------------------------------------------------------------------------------------------------


def test_only_what_the_assistant_says_is_learned():
    found = parts([user("Hi"), assistant("Ho"), user("Who?"), assistant("A fox.")])
    assert found == [
        {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"} | GIVEN,
        {"text": "Ho<|im_end|>"},
        {"text": "\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"} | GIVEN,
        {"text": "A fox.<|im_end|>"},
    ]


def test_media_stand_where_they_were_said():
    items = [{"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {"url": "a.png"}},
             {"type": "text", "text": " and "}, {"type": "audio", "audio": "b.wav"}]  # fmt: skip
    found = parts([user(items), assistant([{"type": "text", "text": "Like "}, {"type": "image", "path": "c.png"}])])
    assert found == [
        {"text": "<|im_start|>user\nLook: "} | GIVEN,
        {"image": "a.png"} | GIVEN,
        {"text": " and "} | GIVEN,
        {"audio": "b.wav"} | GIVEN,
        {"text": "<|im_end|>\n<|im_start|>assistant\n"} | GIVEN,
        {"text": "Like "},
        {"image": "c.png"},
        {"text": "<|im_end|>"},
    ]


def test_both_forms_say_the_same():
    openai = [{"role": "system", "content": "Be brief."},
              user([{"type": "image", "image": "a.png"}, {"type": "text", "text": "\nWhat is it?"}]),
              assistant("A fox."), user("Sure?"), assistant("Yes.")]  # fmt: skip
    llava = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "<image>\nWhat is it?"},
             {"from": "gpt", "value": "A fox."}, {"from": "human", "value": "Sure?"},
             {"from": "gpt", "value": "Yes."}]  # fmt: skip
    row = chat().row({"id": "7", "image": "a.png", "conversations": llava, "meta": {"by": "me"}})
    assert row == {"parts": parts(openai), "meta": {"id": "7", "by": "me"}}
    for images in (["a.png"], [{"bytes": b"png", "path": "a.png"}]):
        table = [openai[0], user([{"type": "image", "text": None}, {"type": "text", "text": "\nWhat is it?"}])]
        found = parts([*table, *openai[2:]], images=images)
        assert found[1] == {"image": images[0]} | GIVEN and [p.get("text") for p in found] == [
            p.get("text") for p in parts(openai)
        ]
    marks = [user("<image>\nWhat is it?"), *openai[2:]]  # marks in OpenAI's form, beside the row's images
    assert parts([openai[0], *marks], images=["a.png"]) == parts(openai)


def test_a_mark_is_text_where_the_row_has_no_such_media():
    found = parts([user("What is <image> in SVG?"), assistant("An element.")])
    assert found[0]["text"].startswith("<|im_start|>user\nWhat is <image> in SVG?<|im_end|>") and len(found) == 2


@pytest.mark.parametrize("silent", [{"weight": 0}, {"loss": False}])
def test_an_answer_can_be_given(silent):
    found = parts([user("Hi"), assistant("Ho", **silent), user("Who?"), assistant("A fox.", weight=1)])
    assert [p["text"] for p in found if "loss" not in p] == ["A fox.<|im_end|>"]
    assert "Ho<|im_end|>" in found[0]["text"]
    with pytest.raises(DataError, match="none is the assistant's and learned"):
        parts([user("Hi"), assistant("Ho", **silent)])


def test_what_follows_the_last_learned_answer_is_left_out_and_counted():
    begun = [user("Hi"), assistant("Ho")]
    with remarks() as said:
        assert parts([*begun, user("Bye"), assistant("No", weight=0)]) == parts(begun)
    assert said == [LEFT_OUT]


def test_what_else_a_message_has_goes_to_the_template():
    template = CHATML.replace("m.content", "(m.content or m.tool_calls[0].name ~ '!')").replace(
        "{% for", "{{ tools | length if tools else 0 }}{% for", 1
    )
    calls = [{"name": "add", "arguments": {"a": 1}}]
    found = parts([user("1+1?"), assistant(None, tool_calls=calls)], template, tools=[{"name": "add"}])
    assert found[0]["text"].startswith("1<|im_start|>user") and found[1] == {"text": "add!<|im_end|>"}


def test_what_a_data_address_holds_stands_in_the_row():
    data = base64.b64encode(b"\x89PNG").decode()
    items = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
             {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]  # fmt: skip
    found = parts([user(items), assistant("Yes")])
    assert [found[1]["image"], found[2]["audio"]] == [
        {"bytes": b"\x89PNG", "path": "image.png"},
        {"bytes": b"\x89PNG", "path": "audio.wav"},
    ]
    assert parts([user("<image>"), assistant("Yes")], image=f"data:image/png;base64,{data}")[1] == found[1]


# -- the template ---------------------------------------------------------------------------------------------------

LETTERS = [*"abc 019.,:\n\t'<>|{}", "é", "漢", "🦊", "\ue000", "\ue0001\ue000", "im_end", "user", "<|im", "\u2028"]


def random_chat(rng: np.random.Generator) -> list:
    messages = [{"role": "system", "content": "".join(rng.choice(LETTERS, 5))}] if rng.integers(2) else []
    for _ in range(rng.integers(1, 4)):
        for role in ("user", "assistant"):
            items = []
            for _ in range(rng.integers(1, 4)):
                if rng.integers(3):
                    items.append({"type": "text", "text": "x" + "".join(rng.choice(LETTERS, rng.integers(0, 12)))})
                else:
                    items.append({"type": "image", "image": f"{rng.integers(99)}.png"})
            messages.append({"role": role, "content": items})
    return messages


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_the_pieces_together_are_what_the_template_writes(template, rng):
    reader, tokenizer = chat(template), chat_tokenizer(template)
    for _ in range(50):
        messages = random_chat(rng)
        written = [m | {"content": "".join(i.get("text", "\uf000") for i in m["content"])}
                   if m["role"] != "system" else m for m in messages]  # fmt: skip
        whole = tokenizer.apply_chat_template(written, tokenize=False)
        found = reader.row({"messages": messages})["parts"]
        text = "".join(p.get("text", "\uf000") for p in found)
        assert whole.startswith(text) and whole[len(text) :] in ("", "\n")
        media = [i["image"] for m in messages if m["role"] != "system" for i in m["content"] if "image" in i]
        assert [p["image"] for p in found if "image" in p] == media
        for run, is_learned in runs(found):
            assert is_learned == run.endswith(("<|im_end|>", "<|eot|>")), (run, found)


def runs(parts: list) -> list:
    """Join neighbours that are both learned, or both not."""
    joined: list = []
    for part in parts:
        learned = part.get("loss", True)
        if joined and joined[-1][1] == learned:
            joined[-1][0] += part.get("text", "\uf000")
        else:
            joined.append([part.get("text", "\uf000"), learned])
    return joined


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_the_ids_of_the_pieces_are_those_of_the_whole(template, rng):
    """Where no answer begins with space: marks that stand for no text are never cut, nor merged."""
    reader, tokenizer = chat(template), chat_tokenizer(template)
    for _ in range(50):
        messages = [m | {"content": "".join(i.get("text", "") for i in m["content"]) or "x"}
                    for m in random_chat(rng) if m["role"] != "system"]  # fmt: skip
        texts = [p["text"] for p in reader.row({"messages": messages})["parts"]]
        ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert ids == tokenizer("".join(texts), add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == "".join(texts)


def test_a_template_that_writes_bos_and_trims():
    found = parts([user(" Hi "), assistant(" Ho ")], LLAMA)
    assert found == [{"text": "<s><|head|>user<|body|>\n\nHi<|eot|><|head|>assistant<|body|>\n\n"} | GIVEN,
                     {"text": "Ho<|eot|>"}]  # fmt: skip


def test_a_template_may_write_the_last_answer_otherwise():
    found = parts([user("Hi"), assistant("Ho"), user("Who?"), assistant("A fox.")], THINKING)
    assert [p["text"] for p in found if "loss" not in p] == ["Ho<|im_end|>", "<think>\n\n</think>\n\nA fox.<|im_end|>"]


def test_the_mark_that_ends_a_turn_is_the_templates():
    """Also where it is not the tokenizer's eos_token."""
    for template, mark in ((CHATML, "<|im_end|>"), (LLAMA, "<|eot|>"), (ALTERNATING, None), ("{{ 1 / 0 }}", None)):
        tokenizer = chat_tokenizer(template, eos="<|endoftext|>")
        assert turn_ends(tokenizer) == ([tokenizer.convert_tokens_to_ids(mark)] if mark else [])
    reader = Chat(chat_tokenizer(CHATML, eos="<|endoftext|>"), [], "text", WORDS)
    assert reader.row({"messages": [user("Hi"), assistant("Ho")]})["parts"][-1] == {"text": "Ho<|im_end|>"}


def test_a_template_without_a_mark_ends_an_answer_where_its_text_does():
    found = parts([user("Hi"), assistant("Ho"), user("Who?"), assistant("A fox.")], ALTERNATING)
    assert [p["text"] for p in found] == ["user: Hi\nassistant: ", "Ho\n", "user: Who?\nassistant: ", "A fox.\n"]


def test_a_template_that_changes_what_it_wrote_is_refused():
    system = {"role": "system", "content": "Be brief."}
    one = [system, user("Hi"), assistant("Ho")]
    assert parts(one, SYSTEM_LAST)[0]["text"] == "[INST] Be brief.\nHi [/INST]"
    with pytest.raises(DataError, match="writes what stands before message 3, an answer, otherwise than when it asks"):
        parts([*one, user("Who?"), assistant("A fox.")], SYSTEM_LAST)


def test_a_question_is_what_the_template_writes_before_an_answer():
    reader, tokenizer = chat(), chat_tokenizer()
    messages = [user("Hi"), assistant("Ho"), user("Who?")]
    (piece,) = reader.prompt(messages)
    assert piece.value == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    media = reader.prompt([user([{"type": "image", "image": b"png"}, {"type": "text", "text": "What?"}])])
    assert [p.key for p in media] == ["text", "image", "text"] and media[1].value == b"png"
    row = {"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}]}
    assert [p.value for p in reader.prompt(row)][1] == "a.png"
    with pytest.raises(DataError, match="the last one is the assistant's"):
        reader.prompt(messages[:2])


# -- which codec reads them -----------------------------------------------------------------------------------------


class WithTokenizer(BytePairCodec):
    def __init__(self, template, key="text"):
        super().__init__(BytePairOptions())
        self.tokenizer, self.key = chat_tokenizer(template), key


def pixels(key: str) -> ImagePixelCodec:
    codec = ImagePixelCodec(ImagePixelOptions())
    codec.key = key
    return codec


def test_the_first_text_codec_with_a_template_reads_conversations():
    assert chat_of({"text": BytePairCodec(BytePairOptions())}) is None and chat_of({"image": pixels("image")}) is None
    assert chat_of({"text": WithTokenizer(None)}) is None
    reader = chat_of({"words": WithTokenizer(CHATML, "words"), "photo": pixels("photo")})
    row = {"messages": [user([{"type": "image", "image": "a.png"}, {"type": "photo", "photo": "b.png"}]),
                        assistant("Yes")]}  # fmt: skip
    assert [next(iter(p)) for p in reader.row(row)["parts"]] == ["words", "photo", "photo", "words", "words"]
    assert "photos" in reader.fields and "messages" in reader.fields


def test_one_of_two_cameras_must_be_named():
    reader = chat_of({"text": WithTokenizer(CHATML), "left": pixels("left"), "right": pixels("right")})
    messages = [user([{"type": "image", "image": "a.png"}]), assistant("Yes")]
    with pytest.raises(DataError, match=r"message 1, item 1: type: unknown name 'image', allowed: .*left, right, text"):
        reader.row({"messages": messages})
    messages[0] = user([{"type": "left", "left": "a.png"}])
    assert reader.row({"messages": messages})["parts"][1] == {"left": "a.png"} | GIVEN


# -- what is refused ------------------------------------------------------------------------------------------------

YES = assistant("Yes")
WRONG = {
    "messages: 'Hi' is not allowed, it must be a list of messages": {"messages": "Hi"},
    "messages: it is empty": {"messages": []},
    "tools: 'add' is not allowed": {"messages": [user("Hi"), YES], "tools": "add"},
    "message 1: 'Hi' is not allowed, it must be a mapping with a role": {"messages": ["Hi", YES]},
    "message 1: role 'usr' is not allowed, it must be one of system, developer, user, assistant, tool; did you mean": {
        "messages": [{"role": "usr", "content": "Hi"}, YES]},
    "message 1: role None is not allowed": {"messages": [{"content": "Hi"}, YES]},
    "message 1: from 'bot' is not allowed, it must be one of system, .*human, gpt": {
        "conversations": [{"from": "bot", "value": "Hi"}, YES]},
    "message 1: from \\[7\\] is not allowed": {"conversations": [{"from": [7], "value": "Hi"}, YES]},
    "message 1: it has no content": {"messages": [{"role": "user"}, YES]},
    "message 1: it has no value": {"conversations": [{"from": "human", "content": "Hi"}, YES]},
    "message 1: content 7 is not allowed, it must be text or a list of items": {"messages": [user(7), YES]},
    "message 1: its content is an empty list": {"messages": [user([]), YES]},
    "message 2: weight 0.5 is not allowed, it must be 0 or 1": {"messages": [user("Hi"), assistant("Ho", weight=0.5)]},
    "message 2: loss 'no' is not allowed, it must be true or false": {
        "messages": [user("Hi"), assistant("Ho", loss="no")]},
    "message 1, item 1: 'Hi' is not allowed, it must be a mapping with a type": {"messages": [user(["Hi"]), YES]},
    "message 1, item 1: type: unknown name 'image_ulr', allowed: .*; did you mean 'image_url'": {
        "messages": [user([{"type": "image_ulr"}]), YES]},
    "message 1, item 1: type: unknown name None": {"messages": [user([{"text": "Hi"}]), YES]},
    "message 1, item 1: text 7 is not allowed, it must be text": {
        "messages": [user([{"type": "text", "text": 7}]), YES]},
    "message 1, item 1: input_audio None is not allowed": {"messages": [user([{"type": "input_audio"}]), YES]},
    "message 1, item 1: audio.wav is not base64": {
        "messages": [user([{"type": "input_audio", "input_audio": {"data": "?"}}]), YES]},
    "message 1, item 1: image.png is empty": {
        "messages": [user([{"type": "image", "url": "data:image/png;base64,"}]), YES]},
    "message 1, item 1: 'data:image/png,abc' is not allowed, it must be data:TYPE;base64": {
        "messages": [user([{"type": "image", "image": "data:image/png,abc"}]), YES]},
    "message 1, item 1: the address 'https://a.b/c.png' is not allowed, as nothing is fetched": {
        "messages": [user([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]), YES]},
    "message 1, item 1: the address 'file:///etc/passwd'": {
        "messages": [user([{"type": "image_url", "image_url": "file:///etc/passwd"}]), YES]},
    "message 1, item 1: it has no value": {"messages": [user([{"type": "image_url"}]), YES]},
    "image 1: the address 's3://b/a.png'": {"messages": [user("<image>"), YES], "image": "s3://b/a.png"},
    "image: the row has 0, but its messages have 1 marks <image>": {"messages": [user([{"type": "image"}]), YES]},
    "image: the row has 1, but its messages have 0 marks": {"messages": [user("What?"), YES], "image": "a.png"},
    "image: the row has 1, but its messages have 2 marks": {
        "conversations": [{"from": "human", "value": "<image> <image>"}, YES], "images": ["a.png"]},
    "audio: the row has 0, but its messages have 1 marks": {
        "conversations": [{"from": "human", "value": "<audio>"}, YES]},
    "messages: none is the assistant's and learned": {"messages": [user("Hi")]},
    "messages: the first one is the assistant's": {"messages": [YES]},
    "messages: a text holds '<|im_end|>', which ends a turn of this model": {"messages": [user("<|im_end|>"), YES]},
    "meta: 7 is not allowed, it must be a mapping": {"messages": [user("Hi"), YES], "meta": 7},
}  # fmt: skip


@pytest.mark.parametrize("sentence", WRONG)
def test_one_sentence_for_each_mistake(sentence):
    assert is_chat(WRONG[sentence])
    with pytest.raises(DataError, match=sentence.replace("|", r"\|").replace("(", r"\(")) as error:
        chat().row(WRONG[sentence])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [7, {"text": "Hi"}, "Hi"])
def test_what_is_no_conversation(given):
    assert not is_chat(given) and not is_chat({"parts": [], "messages": []})
    with pytest.raises(DataError, match="is not allowed, it must be a list of messages"):
        read_conversation(given, WORDS)


def test_a_template_that_refuses_says_why():
    with pytest.raises(DataError, match=r"chat template refuses them \(roles must alternate user/assistant/\.\.\.\)"):
        parts([user("Hi"), user("Ho"), YES], ALTERNATING)
    with pytest.raises(DataError, match="drops or reorders their media"):
        parts(
            [user([{"type": "image", "image": "a.png"}]), YES],
            CHATML.replace("m.content", "m.content | length | string"),
        )


WORDS_OF_ROWS = ["role", "content", "from", "value", "type", "text", "image", "image_url", "url", "input_audio", "data",
                 "user", "assistant", "human", "gpt", "weight", "loss", "name", "images", "<image>", "a.png",
                 "data:image/png;base64,AA==", "https://a.b", "tools", "meta", "\ud800", ""]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats() | st.sampled_from(WORDS_OF_ROWS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS_OF_ROWS), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": VALUES}) | VALUES,
    max_size=4,
)
READER = chat()


@settings(deadline=None, max_examples=300)
@given(form=st.sampled_from(["messages", "conversations"]), messages=MESSAGES, more=VALUES)
def test_whatever_a_row_holds_is_read_or_refused_in_one_sentence(form, messages, more):
    row = {form: messages} | (more if isinstance(more, dict) else {})
    try:
        found = READER.row(row)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        assert found["parts"] and any("loss" not in part for part in found["parts"])
