"""Laws of the measures: nDCG and recall as one computes them by hand, and files whose faults are located."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasette_vec_gemini import create_index, sync
from datasette_vec_gemini.errors import UsageError
from datasette_vec_gemini.evaluating import evaluate, ndcg, read_judgements, read_queries, recall

HEADER = "query-id\tcorpus-id\tscore\n"
LOG3 = math.log2(3)


@pytest.fixture
def write(tmp_path):
    def to_file(content, name="file.x"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


@pytest.mark.parametrize(
    ("ranking", "relevance", "k", "expected"),
    [
        ("a", {"a": 1}, 10, 1.0),
        ("ba", {"a": 1}, 10, 1 / LOG3),
        ("xya", {"a": 1}, 10, 1 / 2),
        ("xya", {"a": 1}, 2, 0.0),
        ("", {"a": 1}, 10, 0.0),
        ("x", {"a": 1}, 10, 0.0),
        ("abx", {"a": 1, "b": 1, "c": 1}, 10, (1 + 1 / LOG3) / (1 + 1 / LOG3 + 1 / 2)),
        ("ab", {"a": 1, "b": 1, "c": 1}, 2, 1.0),
        ("ab", {"a": 1, "b": 3}, 10, (1 + 3 / LOG3) / (3 + 1 / LOG3)),
        ("ba", {"a": 1, "b": 3}, 10, 1.0),
        ("xb", {"a": 2, "b": 1, "c": 0}, 1, 0.0),
        ("cba", {"a": 2, "b": 1, "c": 0}, 10, (1 / LOG3 + 2 / 2) / (2 + 1 / LOG3)),
        ("a", {"a": 0.5}, 10, 1.0),
    ],
)
def test_ndcg_is_what_the_formula_says(ranking, relevance, k, expected):
    assert ndcg(list(ranking), relevance, k=k) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ranking", "relevance", "k", "expected"),
    [
        ("a", {"a": 1}, 10, 1.0),
        ("xa", {"a": 1}, 1, 0.0),
        ("ax", {"a": 1, "b": 1}, 10, 1 / 2),
        ("ab", {"a": 1, "b": 1, "c": 1}, 2, 1.0),
        ("ax", {"a": 1, "b": 1, "c": 1}, 2, 1 / 2),
        ("ab", {"a": 3, "b": 1, "c": 0, "d": -1}, 10, 1.0),
        ("cd", {"a": 3, "c": 0, "d": -1}, 10, 0.0),
        ("", {"a": 1}, 10, 0.0),
    ],
)
def test_recall_is_the_share_of_the_relevant_documents_that_could_be_among_the_first(ranking, relevance, k, expected):
    assert recall(list(ranking), relevance, k=k) == pytest.approx(expected)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3)).filter(lambda relevance: any(relevance.values())),
    st.permutations("abcdefgh"),
    st.integers(1, 10),
)
def test_measures_lie_between_0_and_1_and_the_ideal_ranking_has_1(relevance, ranking, k):
    ideal = sorted(ranking, key=lambda document: -relevance.get(document, 0))
    for measure in (ndcg, recall):
        assert 0 <= measure(ranking, relevance, k=k) <= 1 + 1e-12
        assert measure(ideal, relevance, k=k) == pytest.approx(1.0)
    assert ndcg(ranking, relevance, k=k) == pytest.approx(ndcg(ranking[:k], relevance, k=k))


def test_a_negative_judgement_gains_nothing_as_in_trec_eval():
    assert ndcg(["a", "b"], {"a": 1, "b": -1}, k=10) == 1.0


def test_queries_are_read_from_json_lines(write):
    path = write('{"_id": "q1", "text": "fish", "metadata": {}}\n{"text": "bïrd", "_id": 2}\n\n')
    assert read_queries(path) == {"q1": "fish", "2": "bïrd"}


def test_judgements_are_read_from_tab_separated_columns_in_any_order(write):
    assert read_judgements(write(HEADER + "q1\td1\t1\nq1\td2\t0\n2\td1\t2.5\n")) == {
        "q1": {"d1": 1.0, "d2": 0.0},
        "2": {"d1": 2.5},
    }
    assert read_judgements(write("score\tcorpus-id\tquery-id\r\n1\td 1\tq1\r\n")) == {"q1": {"d 1": 1.0}}


@pytest.mark.parametrize("read", [read_queries, read_judgements])
def test_an_empty_file_has_nothing(write, read):
    assert read(write("")) == {}


@pytest.mark.parametrize("line", ["bad", "[]", "5", '"text"', "null", "{}", '{"_id": 1}', '{"text": "fish"}', "{"])
def test_a_line_that_is_no_query_is_named_with_its_file(write, line):
    with pytest.raises(UsageError, match=r"^queries\.jsonl, line 2: expected an object with _id and text \("):
        read_queries(write(f'{{"_id": 1, "text": "fish"}}\n{line}\n', "queries.jsonl"))


@pytest.mark.parametrize("line", ["q1", "q1\td1", "q1\td1\t", "q1\td1\thigh", "q1,d1,1", "\td1"])
def test_a_line_that_is_no_judgement_is_named_with_its_file(write, line):
    with pytest.raises(UsageError, match=r"^qrels\.tsv, line 3: expected the columns query-id, corpus-id and score \("):
        read_judgements(write(f"{HEADER}q1\td1\t1\n{line}\n", "qrels.tsv"))


@pytest.mark.parametrize("header", ["", "q1\td1\t1\n", "query-id,corpus-id,score\n"])
def test_judgements_need_their_header(write, header):
    with pytest.raises(UsageError, match=r"^qrels\.tsv, line 2: expected the columns query-id, corpus-id and score"):
        read_judgements(write(f"{header}q1\td1\t1\nq2\td1\t1\n", "qrels.tsv"))


@pytest.mark.parametrize("read", [read_queries, read_judgements])
def test_a_file_that_is_no_text_or_not_there_is_named(write, tmp_path, read):
    for path in (write(b"\xff\xfe\x00"), tmp_path / "missing.x", tmp_path):
        with pytest.raises(UsageError, match=rf"^{path.name} cannot be read as UTF-8 text: "):
            read(path)


def test_a_missing_file_is_named_without_its_directory(tmp_path):
    with pytest.raises(UsageError) as caught:
        read_queries(tmp_path / "missing.jsonl")
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("read", "content"), [(read_queries, '{"_id": 1, "text": "a"}\n\nbad\n'), (read_judgements, f"{HEADER}\nbad\n")]
)
def test_a_faulty_line_is_counted_as_an_editor_counts(write, read, content):
    with pytest.raises(UsageError, match=r"^file\.x, line 3: "):
        read(write(content))


@pytest.mark.parametrize("character", ["\u2028", "\x85"])
def test_a_query_may_hold_any_character_that_json_allows(write, character):
    text = f"fish{character}bird"
    assert read_queries(write(f'{{"_id": "1", "text": "{text}"}}\n')) == {"1": text}


@pytest.mark.parametrize(
    ("read", "content"), [(read_queries, '{"_id": "1", "text": "a"}'), (read_judgements, f"{HEADER}1\td\t1")]
)
def test_a_byte_order_mark_is_no_part_of_the_first_line(write, read, content):
    assert read(write("\ufeff" + content)) == read(write(content))


def test_a_quotation_mark_in_a_key_is_a_character_like_any_other(write):
    assert read_judgements(write(f'{HEADER}1\t"a\t1\n2\t"b" c\t1\n')) == {"1": {'"a': 1.0}, "2": {'"b" c': 1.0}}


@pytest.mark.parametrize("score", ["nan", "inf"])
def test_a_judgement_is_a_finite_number(write, score):
    with pytest.raises(UsageError, match=r"^file\.x, line 2: "):
        read_judgements(write(f"{HEADER}1\td\t{score}\n"))


@pytest.fixture
def pets(conn):
    conn.executescript("create table pets (name text primary key, text); insert into pets values ('a', 'red fish');")
    conn.executemany("insert into pets values (?, ?)", [("b", "blue bird"), ("c", "red cat"), ("d", "green dog")])
    conn.commit()
    index = create_index(conn, "pets", table="pets", columns=["text"], embedder="hashing")
    sync(conn, index)
    return index


def test_an_evaluation_gives_the_mean_of_the_judged_queries_for_each_mode(conn, pets):
    queries = {"1": "blue bird", "2": "dog", "3": "not judged", "4": "judged irrelevant"}
    judgements = {"1": {"b": 1}, "2": {"d": 2, "b": 1}, "4": {"a": 0}, "5": {"a": 1}}
    figures = evaluate(conn, pets, queries, judgements, k=1, modes=["keyword", "semantic", "hybrid"])
    perfect = {"ndcg@1": 1.0, "recall@1": 1.0, "queries": 2}
    assert figures == {"keyword": perfect, "semantic": perfect, "hybrid": perfect}
    assert evaluate(conn, pets, {"1": "red fish"}, {"1": {"a": 1, "b": 1}}, k=2, modes=["keyword"]) == {
        "keyword": {"ndcg@2": pytest.approx(1 / (1 + 1 / LOG3)), "recall@2": 0.5, "queries": 1}
    }


@pytest.mark.parametrize("judgements", [{}, {"1": {}}, {"1": {"a": 0}}, {"2": {"a": 1}}])
def test_an_evaluation_without_a_judged_query_is_refused(conn, pets, judgements):
    with pytest.raises(UsageError) as caught:
        evaluate(conn, pets, {"1": "fish"}, judgements)
    assert str(caught.value) == ("none of the 1 queries has a relevant document in the judgements: check the ids")
