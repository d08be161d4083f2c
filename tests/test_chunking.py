"""Laws of chunking: chunks are a cut of the text, each within the window; any edit of the text is noticed."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_vec_gemini import load_embedder
from datasette_vec_gemini.chunking import covers, placeholders, render, split
from datasette_vec_gemini.domain import Chunk

TOKENIZER = load_embedder("local").tokenizer


@dataclass(frozen=True)
class Window:
    """What chunking needs of an embedder."""

    chunk_capacity: int
    tokenizer: Any = None

    def length(self, text):
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids) if self.tokenizer else len(text)


WINDOWS = st.sampled_from([Window(1), Window(8), Window(50), Window(8, TOKENIZER), Window(40, TOKENIZER)])
CHARACTERS = st.characters(exclude_categories=["Cs"])
WORDS = st.sampled_from(["a", "word", "Ünïcödé", "semantic", "search.", "don't", "日本語", "👩‍💻", "é", "--", "42"])
GAPS = st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u3000", ". ", ", ", ""])
PROSE = st.lists(st.tuples(WORDS, GAPS), max_size=60).map(lambda pairs: "".join(map("".join, pairs)))
TEXTS = PROSE | st.text(CHARACTERS, max_size=80)


def black(text):
    return [position for position, character in enumerate(text) if not character.isspace()]


@given(TEXTS, WINDOWS)
@settings(deadline=None, max_examples=200)
def test_chunks_are_a_cut_of_the_text(text, window):
    chunks = split(text, window)
    assert covers(text, chunks)
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert [text[chunk.start : chunk.end] for chunk in chunks] == [chunk.text for chunk in chunks]
    assert {position for chunk in chunks for position in range(chunk.start, chunk.end)} >= {*black(text)}


@given(PROSE, WINDOWS.filter(lambda window: window.chunk_capacity > 1))
@settings(deadline=None, max_examples=200)
def test_every_chunk_fits_the_window(text, window):
    assert [chunk.text for chunk in split(text, window) if window.length(chunk.text) > window.chunk_capacity] == []


@pytest.mark.parametrize("capacity", [40, 254])
def test_a_character_that_is_several_tokens_is_counted_as_such(capacity):
    window = Window(capacity, TOKENIZER)
    text = ("한국어 문장을 나누는 시험입니다 " * 20)[:capacity]  # the tokenizer takes each syllable apart into letters
    assert [window.length(chunk.text) for chunk in split(text, window) if window.length(chunk.text) > capacity] == []


@given(TEXTS, WINDOWS)
@settings(deadline=None)
def test_chunks_follow_one_another_without_overlap(text, window):
    assert [a.end <= b.start for a, b in pairwise(split(text, window))] == [True] * (len(split(text, window)) - 1)


@given(PROSE, WINDOWS)
@settings(deadline=None)
def test_a_chunk_neither_begins_nor_ends_with_white_space(text, window):
    assert [chunk.text for chunk in split(text, window)] == [chunk.text.strip() for chunk in split(text, window)]


@given(st.text(st.sampled_from(" \t\n\r\f\v\x1c\x85\xa0\u2003\u2028\u3000"), max_size=300), WINDOWS)
@settings(deadline=None)
def test_a_blank_text_has_no_chunk(text, window):
    assert split(text, window) == []
    assert covers(text, [])


def test_a_text_that_fits_is_one_chunk_with_its_place_in_the_text():
    assert split("  two words\n", Window(9)) == [Chunk(position=0, start=2, end=11, text="two words")]


def test_a_cut_falls_on_the_largest_boundary_that_fits():
    text = "One sentence. Another one.\n\nA paragraph of its own."
    assert [chunk.text for chunk in split(text, Window(30))] == [
        "One sentence. Another one.",
        "A paragraph of its own.",
    ]
    assert [chunk.text for chunk in split(text[:26], Window(15))] == ["One sentence.", "Another one."]


@pytest.mark.parametrize("sentences", [25, 30, 49, 51, 60, 94, 127, 250, 280, 400])
def test_no_chunk_is_much_shorter_than_half_of_the_others(sentences):
    local = load_embedder("local")
    text = " ".join(f"Sentence number {number} says something about databases." for number in range(sentences))
    lengths = [Window(local.chunk_capacity, TOKENIZER).length(chunk.text) for chunk in split(text, local)]
    assert max(lengths) <= local.chunk_capacity
    assert min(lengths) > 0.4 * max(lengths)


@given(TEXTS, WINDOWS, st.data())
@settings(deadline=None, max_examples=200)
def test_chunks_do_not_cover_the_text_after_any_edit_of_a_character_that_shows(text, window, data):
    chunks, places = split(text, window), black(text)
    edit = data.draw(st.sampled_from(["insert", "replace", "delete"] if places else ["insert"]))
    if edit == "insert":
        place = data.draw(st.integers(0, len(text)))
        edited = text[:place] + data.draw(CHARACTERS.filter(lambda character: not character.isspace())) + text[place:]
    else:
        place = data.draw(st.sampled_from(places))
        new = data.draw(CHARACTERS.filter(lambda character: character != text[place])) if edit == "replace" else ""
        edited = text[:place] + new + text[place + 1 :]
    assert not covers(edited, chunks)


@given(PROSE.filter(str.strip), WINDOWS)
@settings(deadline=None)
def test_chunks_do_not_cover_a_text_when_one_of_them_is_missing(text, window):
    chunks = split(text, window)
    for missing in range(len(chunks)):
        assert not covers(text, chunks[:missing] + chunks[missing + 1 :])


def test_white_space_behind_the_last_chunk_does_not_matter():
    assert covers("a b \n\n", split("a b", Window(3)))


ROW = {"id": 7, "title": "Dates", "body": None, "blob": b"\x00", "price": 1.5, "braces": "{title} {", "blank": " \n"}


@pytest.mark.parametrize(
    ("columns", "template", "document"),
    [
        (["title"], None, "Dates"),
        (["title", "price"], None, "Dates\n\n1.5"),
        (["price", "title"], None, "1.5\n\nDates"),
        (["title", "body", "blob", "blank", "id"], None, "Dates\n\n7"),
        (["body", "blob", "blank"], None, ""),
        (["braces"], None, "{title} {"),
        (["title", "price"], "{title} costs {price} €", "Dates costs 1.5 €"),
        (["title", "body", "blob"], "<{title}|{body}|{blob}>", "<Dates||>"),
        (["braces", "title"], "{braces}/{title}", "{title} {/Dates"),
        (["title"], "{{title}} {} %s $1 \\1", "{Dates} {} %s $1 \\1"),
        (["body", "blank"], "Title: {body}{blank}", ""),
        (["title"], "", ""),
        (["title"], " \n", ""),
        (["title"], "no column at all", "no column at all"),
    ],
)
def test_a_row_is_written_as_its_columns_or_its_template_say(columns, template, document):
    assert render(ROW, columns=columns, template=template) == document


@pytest.mark.parametrize(
    ("template", "columns"),
    [("", ()), ("{a} and {b c}", ("a", "b c")), ("{{a}}", ("a",)), ("{}", ()), ("{a", ()), ("{a} {a}", ("a", "a"))],
)
def test_a_template_names_columns_in_braces(template, columns):
    assert placeholders(template) == columns


@given(st.dictionaries(st.sampled_from("abc"), st.none() | st.integers() | st.binary() | PROSE, min_size=3))
def test_a_document_shows_something_or_is_empty(row):
    document = render(row, columns=["a", "b", "c"], template=None)
    assert document == "" or document.strip()
