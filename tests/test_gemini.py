"""What goes over the wire to Google and what is made of the answer: the real SDK against a fake of the service."""

import json

import numpy as np
import pytest
from fake_gemini import KEY, FakeGemini

from datasette_vec_gemini import Access, load_embedder
from datasette_vec_gemini.embedders.batching import WITNESS
from datasette_vec_gemini.embedders.service import TASKS
from datasette_vec_gemini.errors import EmbedderUnavailable, EmbeddingFailed, UnknownEmbedder

pytestmark = pytest.mark.usefixtures("one_certificate")

ONE = "gemini:gemini-embedding-001"
PREFIX = "title: none | text: "
MODELS = "gemini-embedding-2, gemini-embedding-001"


@pytest.fixture
def fake():
    with FakeGemini() as served:
        yield served


@pytest.fixture
def model(fake):
    def load(specification="gemini", **options):
        return load_embedder(
            specification, Access(api_key=KEY, key_source="k", base_url=fake.url, patience_seconds=2, **options)
        )

    return load


def fields(fake):
    """The requests for single texts in the order they came, without those for the witness."""
    found = []
    for received in fake.requests:
        found += received.body.get("requests", [received.body])
    return [entry for entry in found if WITNESS not in entry["content"]["parts"][0]["text"]]


def sent(fake):
    return [text for received in fake.requests for text in received.texts if WITNESS not in text]


def near(vector, other):
    return np.allclose(vector, other / np.linalg.norm(other), atol=1e-5)


def test_model_2_is_told_by_prefixes_what_a_text_is_for(fake, model):
    documents = model().embed_documents(["a b", "c d"])
    question = model().embed_query("a b")
    assert sent(fake) == [PREFIX + "a b", PREFIX + "c d", "task: search result | query: a b"]
    assert all("taskType" not in json.dumps(received.body) for received in fake.requests)
    assert near(documents[0], fake.vector(PREFIX + "a b"))
    assert near(documents[1], fake.vector(PREFIX + "c d"))
    assert near(question, fake.vector("task: search result | query: a b"))
    assert documents[0] @ question < 0.99


def test_001_is_told_by_its_task_type_and_gets_the_text_as_it_is(fake, model):
    documents = model(ONE).embed_documents(["a b", "c d"])
    question = model(ONE).embed_query("a b")
    assert sent(fake) == ["a b", "c d", "a b"]
    assert [entry["taskType"] for entry in fields(fake)] == [
        "RETRIEVAL_DOCUMENT",
        "RETRIEVAL_DOCUMENT",
        "RETRIEVAL_QUERY",
    ]
    expected = fake.vector("a b", model="gemini-embedding-001", task_type="RETRIEVAL_DOCUMENT")
    assert np.linalg.norm(expected) == pytest.approx(0.7)
    assert near(documents[0], expected)
    assert near(question, fake.vector("a b", model="gemini-embedding-001", task_type="RETRIEVAL_QUERY"))
    assert np.allclose(np.linalg.norm([*documents, question], axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_spelled_for_either_model(fake, model, task):
    model().embed_query("a {} b", task=task)
    model(ONE).embed_query("a {} b", task=task)
    two, one = fields(fake)
    text = two["content"]["parts"][0]["text"]
    assert text == TASKS[task].replace("{title}", "none").replace("{}", "a {} b", 1)
    assert (one["taskType"], one["content"]["parts"][0]["text"]) == (task, "a {} b")
    assert "title" not in one


def test_a_title_goes_where_the_model_wants_it(fake, model):
    vectors = model().embed_documents(["a b", "c"], title="The\n title {}")
    assert sent(fake) == ["title: The title {} | text: a b", "title: The title {} | text: c"]
    assert near(vectors[0], fake.vector("title: The title {} | text: a b"))
    fake.requests.clear()
    vectors = model(ONE).embed_documents(["a b", "c"], title="The title")
    assert [entry["title"] for entry in fields(fake)] == ["The title"] * 2
    assert near(
        vectors[0], fake.vector("a b", model="gemini-embedding-001", task_type="RETRIEVAL_DOCUMENT", title="The title")
    )


@pytest.mark.parametrize("dimensions", [128, 768, 3_072])
@pytest.mark.parametrize("name", ["gemini-embedding-2", "gemini-embedding-001"])
def test_the_dimensions_are_always_asked_for(fake, model, name, dimensions):
    embedder = model(f"gemini:{name}@{dimensions}")
    assert embedder.embed_documents(["a", "b c"]).shape == (2, dimensions)
    assert embedder.embed_query("a").shape == (dimensions,)
    assert {entry["outputDimensionality"] for entry in fields(fake)} == {dimensions}


def test_the_key_is_in_the_header_and_the_version_is_pinned(fake, model):
    model().embed_documents(["a", "b"])
    model().embed_query("a")
    assert {received.path.partition(":")[0] for received in fake.requests} == {"/v1beta/models/gemini-embedding-2"}
    for received in fake.requests:
        assert received.headers["x-goog-api-key"] == KEY
        assert KEY not in received.path + json.dumps(received.body)


def test_what_the_environment_says_of_google_changes_nothing(fake, model, monkeypatch):
    monkeypatch.setenv("GOOGLE_API_KEY", "another")
    monkeypatch.setenv("GEMINI_API_KEY", "a third")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "https://elsewhere.example")
    assert model().embed_query("a").shape == (768,)
    assert fake.requests[0].headers["x-goog-api-key"] == KEY


def test_a_batch_has_a_hundred_texts_at_most_with_what_goes_along(fake, model):
    vectors = model().embed_documents([f"word{n}" for n in range(450)])
    sizes = [len(received.texts) for received in fake.requests]
    assert max(sizes) <= 100
    assert len(sizes) <= 6
    assert sent(fake) == [f"{PREFIX}word{n}" for n in range(450)]
    assert all(near(vectors[n], fake.vector(f"{PREFIX}word{n}")) for n in range(0, 450, 37))


@pytest.mark.parametrize("least", [1, 2, 3, 4, 5])
def test_a_smaller_batch_can_be_demanded(fake, model, least):
    vectors = model(texts_per_request=least).embed_documents(["a", "b", "c", "d", "e"])
    assert max(len(received.texts) for received in fake.requests) <= least
    assert all(near(v, fake.vector(PREFIX + text)) for v, text in zip(vectors, "abcde", strict=True))


def test_a_request_stays_within_its_tokens(fake, model):
    model(tokens_per_request=1_000).embed_documents([f"{n} " + "word " * 200 for n in range(12)])
    for received in fake.requests:
        assert sum(len(text) / 4 for text in received.texts) <= 1_100


def test_a_request_stays_within_its_bytes(fake, model):
    texts = [chr(0x4E00 + n) * 7_000 for n in range(60)]
    fake.tokens_per_minute = None
    model(tokens_per_request=10**6).embed_documents(texts)
    assert max(int(received.headers["content-length"]) for received in fake.requests) < 4_194_304
    assert len(sent(fake)) == 60


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "blank"),
        (" \n\t\u2003", "blank"),
        ("x" * 40_000, "8,192"),
        ("good \ud800 bad", "lone surrogate"),
    ],
)
def test_what_google_would_refuse_is_not_sent(fake, model, text, reason):
    with pytest.raises(EmbeddingFailed, match=reason) as caught:
        model().embed_documents(["fine", text, "also fine"])
    first, fault, last = caught.value.outcomes
    assert reason in fault
    assert near(first, fake.vector(PREFIX + "fine"))
    assert near(last, fake.vector(PREFIX + "also fine"))
    assert sent(fake) == [PREFIX + "fine", PREFIX + "also fine"]
    with pytest.raises(EmbeddingFailed, match=reason):
        model().embed_query(text)
    assert len(sent(fake)) == 2


def test_nothing_is_asked_for_nothing(fake, model):
    assert model().embed_documents([]).shape == (0, 768)
    assert fake.requests == []


@pytest.mark.parametrize(
    "text", ["a\0b", "é ü 漢字 🦊", "'; drop table", "{} {title}", "title: x | text: y", "\x7f\u202e"]
)
def test_any_other_text_arrives_as_it_is(fake, model, text):
    vectors = model().embed_documents([text, "other"])
    assert sent(fake)[0] == PREFIX + text
    assert near(vectors[0], fake.vector(PREFIX + text))


def test_a_text_like_the_witness_is_a_text(fake, model):
    vectors = model().embed_documents([WITNESS, "a", "b"])
    assert all(near(v, fake.vector(PREFIX + text)) for v, text in zip(vectors, [WITNESS, "a", "b"], strict=True))


@pytest.mark.parametrize(
    ("specification", "name", "model_name", "dimensions"),
    [
        ("gemini", "gemini", "gemini-embedding-2", 768),
        ("gemini:gemini-embedding-2", "gemini", "gemini-embedding-2", 768),
        ("gemini:gemini-embedding-2@768", "gemini", "gemini-embedding-2", 768),
        ("gemini:models/gemini-embedding-2", "gemini", "gemini-embedding-2", 768),
        ("gemini@1536", "gemini:gemini-embedding-2@1536", "gemini-embedding-2", 1536),
        (ONE, ONE, "gemini-embedding-001", 768),
        (f"{ONE}@3072", f"{ONE}@3072", "gemini-embedding-001", 3072),
    ],
)
def test_a_specification_names_model_and_dimensions_and_its_name_loads_the_same(
    specification, name, model_name, dimensions
):
    loaded = load_embedder(specification, Access(api_key=KEY))
    assert (loaded.name, loaded.model.name, loaded.dimensions, loaded.paid) == (name, model_name, dimensions, True)
    assert load_embedder(name, Access(api_key=KEY)).fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    ("specification", "reason"),
    [
        ("gemini:", "write gemini, gemini:MODEL"),
        ("gemini@", "write gemini"),
        ("gemini:a/b", "write gemini"),
        ("gemini:gemini-embedding-2@0", "128 to 3,072"),
        ("gemini@127", "128 to 3,072"),
        ("gemini@3073", "128 to 3,072"),
        ("gemini:text-embedding-004", "retired.*use gemini:gemini-embedding-2"),
        ("gemini:embedding-001", "retired"),
        ("gemini:gemini-embedding-exp-03-07", "retired"),
        ("gemini:gemini-embedding-3", f"known are {MODELS}.*task_scheme"),
        ("gemini:gemini-embedding-3@768", "task_scheme"),
    ],
)
def test_what_is_no_model_is_refused_with_the_remedy(specification, reason):
    with pytest.raises(UnknownEmbedder, match=reason):
        load_embedder(specification, Access(api_key=KEY))


@pytest.mark.parametrize("scheme", ["prefix", "task_type"])
def test_an_unknown_model_works_with_its_scheme_and_dimensions(fake, model, scheme):
    embedder = model("gemini:gemini-embedding-9-test@512", task_scheme=scheme)
    vectors = embedder.embed_documents(["a", "b"])
    assert vectors.shape == (2, 512)
    assert sent(fake) == ([PREFIX + "a", PREFIX + "b"] if scheme == "prefix" else ["a", "b"])
    with pytest.raises(UnknownEmbedder):
        model("gemini:gemini-embedding-9-test", task_scheme=scheme)


def test_a_missing_model_is_told_after_one_call(fake, model):
    embedder = model("gemini:gemini-embedding-99@512", task_scheme="prefix")
    with pytest.raises(EmbedderUnavailable, match="no model gemini-embedding-99"):
        embedder.embed_documents(["a"] * 50)
    assert len(fake.requests) == 1


def test_fingerprints_differ_where_vectors_do():
    access = Access(api_key=KEY)
    names = ["gemini", "gemini@256", ONE, f"{ONE}@256"]
    assert len({load_embedder(name, access).fingerprint for name in names}) == 4


def test_without_a_key_local_is_named(fake):
    embedder = load_embedder("gemini", Access(base_url=fake.url))
    with pytest.raises(EmbedderUnavailable, match=r"GEMINI_API_KEY.*local"):
        embedder.embed_documents(["a"])
    assert fake.requests == []


def test_vertex_is_asked_by_project_and_location_with_a_service_account(fake, monkeypatch, service_account):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    for location, spelled in (("us-central1", "us-central1"), (None, "global")):
        fake.requests.clear()
        embedder = load_embedder(
            "gemini", Access(project="p", location=location, base_url=fake.url, patience_seconds=2)
        )
        vectors = embedder.embed_documents(["a b", "c"])
        assert near(vectors[0], fake.vector(PREFIX + "a b"))
        asked = [received for received in fake.requests if received.path != "/token"]
        assert {received.path.rpartition("/models/")[0] for received in asked} == {
            f"/v1beta1/projects/p/locations/{spelled}/publishers/google"
        }
        assert all(received.headers["authorization"] == "Bearer fake-token" for received in asked)
        assert all("x-goog-api-key" not in received.headers for received in fake.requests)
