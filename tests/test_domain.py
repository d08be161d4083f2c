"""Laws of the shared values: valid from birth or an error that says what to do, frozen, and printable as JSON."""

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_vec_gemini import load_embedder
from datasette_vec_gemini.domain import (
    MAX_HITS,
    Chunk,
    Embedder,
    Hit,
    Index,
    KeyColumn,
    KeywordRank,
    Progress,
    Query,
    SemanticRank,
    SyncReport,
    Why,
)
from datasette_vec_gemini.errors import InvalidName, InvalidQuery, InvalidSetting

ID = KeyColumn(name="id", affinity="INTEGER", collation="BINARY")
CHUNK = Chunk(position=1, start=10, end=14, text="fish")
HIT = Hit(
    key=("a", 2, b"\x00\xff"),
    score=0.75,
    title="A title",
    snippet="…fish…",
    chunk=CHUNK,
    row={"id": "a", "n": 2, "x": 1.5, "none": None, "blob": b"\x00\xff\x10"},
    why=Why(keyword=KeywordRank(rank=2, bm25=1.5), semantic=SemanticRank(rank=1, cosine=0.5), fused=0.75),
)


def index(name="docs", **options):
    given_options = {"table": "t", "columns": ("a",), "key": (ID,), "embedder": "local", "fingerprint": "f"}
    return Index(name=name, dimensions=8, **given_options | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k is -1; it can be 1 to 1,000"),
        ({"k": 0}, "k is 0; it can be 1 to 1,000"),
        ({"k": 1_001}, "k is 1001; it can be 1 to 1,000"),
        ({"k": 10**9}, "k is 1000000000; it can be 1 to 1,000"),
        ({"offset": -1}, "offset is -1; it can be 0 or more"),
        (
            {"k": 10, "offset": 991},
            "offset + k is 1,001; an answer is ranked to a depth of 1,000: narrow it with filters",
        ),
        (
            {"offset": 10**9},
            "offset + k is 1,000,000,010; an answer is ranked to a depth of 1,000: narrow it with filters",
        ),
        ({"mode": "fuzzy"}, "mode is 'fuzzy'; it can be hybrid, semantic, keyword"),
        ({"mode": ""}, "mode is ''; it can be hybrid, semantic, keyword"),
        ({"mode": None}, "mode is None; it can be hybrid, semantic, keyword"),
        ({"text": ""}, "the query is empty: say what to search for"),
        ({"text": " \t\r\n\u3000"}, "the query is empty: say what to search for"),
        ({"text": "x" * 1_000_000}, "the query has 1,000,000 characters; the limit is 10,000: shorten it"),
        (
            {"text": "fish\0"},
            "the query has the character U+0000 at position 4, which is not text: remove it",
        ),
        (
            {"text": "a\ud83d fish"},
            "the query has the character U+D83D at position 1, which is not text: remove it",
        ),
    ],
)
def test_an_impossible_query_is_refused_with_its_value_and_the_remedy(options, message):
    with pytest.raises(InvalidQuery) as caught:
        Query(**{"text": "fish"} | options)
    assert str(caught.value) == message


@pytest.mark.parametrize("make", [lambda text: Query("fish", mode=text), index], ids=["mode", "name"])
def test_a_refusal_stays_short_however_long_the_value_is(make):
    with pytest.raises((InvalidName, InvalidQuery)) as caught:
        make("x" * 100_000)
    assert len(str(caught.value)) < 300


@given(st.integers(-2, MAX_HITS + 2), st.integers(-2, MAX_HITS + 2))
def test_a_query_is_valid_exactly_when_its_window_lies_within_the_ranked_depth(k, offset):
    try:
        Query("fish", k=k, offset=offset)
    except InvalidQuery:
        assert not (k >= 1 and offset >= 0 and k + offset <= MAX_HITS)
    else:
        assert k >= 1
        assert offset >= 0
        assert k + offset <= MAX_HITS


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50))
def test_any_text_that_shows_something_can_be_asked_for(text):
    if text.strip():
        assert Query(text).text == text
    else:
        with pytest.raises(InvalidQuery, match=r"^the query is empty"):
            Query(text)


def test_a_query_of_the_greatest_length_can_be_asked():
    assert len(Query("é" * 10_000).text) == 10_000


@pytest.mark.parametrize("name", ["a", "Docs_2", "a" * 63])
def test_a_name_of_letters_digits_and_underscores_can_be_an_index(name):
    assert index(name).name == name


@pytest.mark.parametrize("name", ["", "1a", "_a", "a" * 64, "é", "a-b", "a b", "a.b", "a\n", "a\0", 'a"', "a'; drop--"])
def test_any_other_name_is_refused_with_the_rule_and_the_flag(name):
    with pytest.raises(InvalidName) as caught:
        index(name)
    assert str(caught.value) == (
        f"{name!r} cannot be the name of an index: use a letter, then up to 62 letters, digits or underscores "
        "(command line: --name)"
    )


def test_an_unknown_quantizer_is_refused_with_those_there_are():
    with pytest.raises(InvalidSetting, match=r"^quantize is 'int4'; it can be bit, int8, float32$"):
        index(quantize="int4")


def test_the_tables_of_a_generation_are_named_after_it():
    assert index(generation=3).object("chunks") == "_vec_docs_3_chunks"
    assert index(generation=3).view == "_vec_docs"


@pytest.mark.parametrize(
    ("key", "options", "expected"),
    [
        (["id"], {}, False),
        (["rowid"], {}, True),
        (["_rowid_"], {}, True),
        (["oid"], {}, True),
        (["rowid"], {"is_view": True}, False),
        (["rowid", "id"], {}, False),
    ],
)
def test_a_table_without_a_primary_key_of_its_own_is_known_by_its_key(key, options, expected):
    columns = tuple(KeyColumn(name=name, affinity="INTEGER", collation="BINARY") for name in key)
    assert index(key=columns, **options).has_rowid_key is expected


VALUES = [
    ID,
    CHUNK,
    HIT,
    HIT.why,
    HIT.why.keyword,
    HIT.why.semantic,
    Query("fish"),
    Progress(stage="text", done=1, total=2),
    SyncReport(),
    index(),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen_equal_by_value_and_built_by_keyword(value):
    contents = {field.name: getattr(value, field.name) for field in fields(value)}
    for name, content in contents.items():
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, content)
    positional = [contents.pop("text")] if isinstance(value, Query) else []
    assert type(value)(*positional, **contents) == value
    with pytest.raises(TypeError):
        type(value)(*positional, *contents.values())


def test_queries_are_equal_whether_embedded_yet_or_not():
    assert Query("fish", vector=[1.0]) == Query("fish")
    assert Query("fish", k=5) != Query("fish")


def test_a_hit_prints_every_documented_key_and_blobs_as_their_size():
    assert HIT.to_dict() == {
        "key": ["a", 2, "00ff"],
        "score": 0.75,
        "title": "A title",
        "snippet": "…fish…",
        "chunk": {"position": 1, "start": 10, "end": 14},
        "row": {"id": "a", "n": 2, "x": 1.5, "none": None, "blob": "<3 bytes>"},
        "why": {"keyword": {"rank": 2, "bm25": 1.5}, "semantic": {"rank": 1, "cosine": 0.5}, "fused": 0.75},
    }
    assert json.loads(json.dumps(HIT.to_dict(), allow_nan=False)) == HIT.to_dict()


def test_a_hit_says_null_for_a_side_that_did_not_find_it():
    hit = Hit(key=(1,), score=1.0, title="", snippet="", chunk=CHUNK, row={}, why=Why())
    assert hit.to_dict()["why"] == {"keyword": None, "semantic": None, "fused": None}


def test_a_hit_is_json_whatever_its_row_holds():
    hit = Hit(key=(1,), score=1.0, title="", snippet="", chunk=CHUNK, row={"x": math.inf}, why=Why())
    json.dumps(hit.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["hashing", "local"])
def test_the_built_in_embedders_keep_the_protocol(name):
    assert isinstance(load_embedder(name), Embedder)
    assert load_embedder(load_embedder(name).name).fingerprint == load_embedder(name).fingerprint
