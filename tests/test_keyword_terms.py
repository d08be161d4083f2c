"""Laws of keyword terms: whatever is typed, FTS5 gets words and phrases, never a syntax error."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasette_vec_gemini import sqlite3
from datasette_vec_gemini.store.keyword import MAX_TERMS, expression, terms

SYNTAX = st.sampled_from([*"\"'()*^:+-{},.;~", " AND ", " OR ", " NOT ", "NEAR(", "NEAR/2", " col:", "word", "x", " "])
TEXTS = st.lists(
    SYNTAX | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5), max_size=30
).map("".join)


@pytest.fixture(scope="module")
def matches():
    """Which of the texts FTS5 finds by the expression, with the tokenizer that indexes have."""
    connection = sqlite3.connect(":memory:")
    connection.execute("create virtual table fts using fts5 (text, tokenize='porter unicode61')")

    def find(query, *texts):
        match = expression(query)
        connection.execute("delete from fts")
        connection.executemany("insert into fts (text) values (?)", [(text,) for text in texts])
        if not match:
            return []
        return [text for (text,) in connection.execute("select text from fts where fts match ?", [match])]

    yield find
    connection.close()


@given(TEXTS)
@example("NEAR(a b, 2) AND c OR d NOT e* ^f col:g -h +i {j k}: l")
@example('"')
@example('a"')
@example('""" a')
@example('"""a""" ""b""')
@example("c++ 'it''s' \\ %_ ;--")
@example("()" * 1_000 + "a")
@example('"' + "long phrase " * 10_000 + '"')
@example("w" * 100_000)
@settings(deadline=None)
def test_fts5_understands_the_expression_of_any_text(matches, text):
    matches(text, "word")


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyzABCDEF0123456789", min_size=1), min_size=1, max_size=20), st.data())
@settings(deadline=None)
def test_a_text_is_found_by_each_of_its_words(matches, words, data):
    text = " ".join(words)
    assert matches(data.draw(st.sampled_from(words)), text) == [text]


@pytest.mark.parametrize("text", ["fish", "Ünïcödé", "ΣΊΣΥΦΟΣ", "поиск", "поисков", "東京", "١٢٣", "naïve", "हिन्दी"])
def test_a_word_of_any_script_is_found_in_any_case(matches, text):
    for query in (text, text.lower(), text.upper()):
        assert matches(query, text) == [text]


@pytest.mark.parametrize("word", ["straße", "ﬁne", "ŉ"])
def test_a_word_is_found_as_it_is_written(matches, word):
    assert matches(word, word) == [word]


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "asked",
    [
        "NFC",
        "NFD",
    ],
)
def test_accents_are_found_however_they_are_encoded(matches, written, asked):
    text = unicodedata.normalize(written, "résumé")
    assert matches(unicodedata.normalize(asked, "résumé"), text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("red fish", ["red", "fish"]),
        ("Red RED red", ["red"]),
        ('"red fish" blue', ["red fish", "blue"]),
        ('"Red Fish" "red fish"', ["red fish"]),
        ('"red fish', ["red", "fish"]),
        ('"" " " "!" a', ["a"]),
        ("NEAR(a b, 2)", ["near", "a", "b", "2"]),
        ("a AND b OR c NOT d", ["a", "and", "b", "or", "c", "not", "d"]),
        ("pre* ^first col:x -y +z", ["pre", "first", "col", "x", "y", "z"]),
        ("os.path.join", ["os", "path", "join"]),
        ("snake_case", ["snake_case"]),
        ("👍 🎉 👩‍💻", []),
        ("!?*^():-+", []),
    ],
)
def test_words_and_quoted_phrases_are_the_terms_each_once_in_order(text, expected):
    assert terms(text) == expected
    assert expression(text) == " OR ".join(f'"{term}"' for term in expected)


def test_a_quoted_phrase_is_found_only_as_it_stands(matches):
    assert matches('"red fish"', "red fish", "fish red", "a red fish swims") == ["red fish", "a red fish swims"]


def test_any_of_the_terms_is_enough(matches):
    assert matches("red zebra", "red fish", "blue fish", "zebra") == ["red fish", "zebra"]


def test_operators_are_plain_words(matches):
    texts = ["a AND b", "a b", "near", "or"]
    assert matches("AND", *texts) == ["a AND b"]
    assert matches("NEAR(", *texts) == ["near"]
    assert matches("OR OR OR", *texts) == ["or"]


def test_thousands_of_words_are_cut_to_the_first_different_ones(matches):
    assert terms(" ".join(f"w{number}" for number in range(5_000))) == [f"w{number}" for number in range(MAX_TERMS)]
    assert terms("w " * 5_000 + "x") == ["w", "x"]
    assert matches(" ".join(f"w{number}" for number in range(5_000)), "w0", "w4999") == ["w0"]


def test_a_nul_in_a_phrase_is_no_end_of_it(matches):
    assert matches('"red\0fish"', "red fish") == ["red fish"]
