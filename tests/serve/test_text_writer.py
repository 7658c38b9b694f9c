"""Text as it is written: pieces put together are the text, and nothing of a stop is shown."""

from hypothesis import given, settings
from hypothesis import strategies as st

from plait.serve.jobs import TextWriter


def decode(ids) -> str:
    return bytes(ids.tolist()).decode("utf-8", "replace")


def written(text: str, stops=()) -> tuple[str, bool]:
    writer, ids, pieces = TextWriter(decode, stops), list(text.encode()), []
    for count in range(1, len(ids) + 1):
        pieces.append(writer.push(ids[:count]))
        if writer.stopped:
            return "".join(pieces), True
    pieces.append(writer.end(ids))
    return "".join(pieces), writer.stopped


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_pieces_put_together_are_the_text(text):
    assert written(text) == (text, False)


@given(st.text("abé", max_size=30), st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_text_ends_before_the_first_stop(text, stops):
    """Whatever stop ends first in the text; what may become a stop is held back until it cannot."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    found, stopped = written(text, stops)
    assert stopped == bool(ends)
    assert found == (text[: min(start for end, start in ends if end == min(ends)[0])] if ends else text)


def test_half_a_character_is_not_shown():
    writer = TextWriter(decode)
    euro = list("a€".encode())
    assert [writer.push(euro[:n]) for n in (1, 2, 3, 4)] == ["a", "", "", "€"]
    assert writer.end(euro) == ""


def test_a_text_that_ends_within_a_character_shows_what_is_there():
    writer = TextWriter(decode)
    ids = list("a€".encode())[:3]
    assert writer.push(ids[:1]) == "a" and writer.push(ids) == "" and writer.end(ids) == "\ufffd"


def test_a_second_text_begins_anew():
    writer = TextWriter(decode, ["xy"])
    assert writer.push(list(b"ax")) == "a" and writer.end(list(b"ax")) == "x"
    assert writer.push(list(b"yb")) == "yb" and writer.end(list(b"yb")) == ""
