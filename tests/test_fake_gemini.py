"""Laws of the fake of Google's API, as the real SDK sees it."""

import http.client
import json
import math
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fake_gemini
import numpy as np
import pytest
from fake_gemini import FAULTS, KEY, FakeGemini

genai = pytest.importorskip("google.genai")
errors = pytest.importorskip("google.genai.errors")
types = pytest.importorskip("google.genai.types")
httpx2 = pytest.importorskip("httpx2")
pydantic = pytest.importorskip("pydantic")

TWO, ONE = "gemini-embedding-2", "gemini-embedding-001"
QUERY, DOCUMENT = "task: search result | query: ", "title: none | text: "


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in (
        "GOOGLE_API_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_GENAI_USE_VERTEXAI",
        "GOOGLE_GENAI_USE_ENTERPRISE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake():
    with FakeGemini() as served:
        yield served


def options(fake, **given):
    # Google's certificates, which take most of a client's time to load, are of no use here.
    empty = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return types.HttpOptions(
        base_url=fake.url,
        client_args={"verify": empty},
        async_client_args={"verify": empty, "ssl": empty},
        **given,
    )


def client(fake, *, key=KEY, version="v1beta", timeout=5000):
    return genai.Client(api_key=key, vertexai=False, http_options=options(fake, api_version=version, timeout=timeout))


def embed(fake, texts, *, model=TWO, through=None, **config):
    # A client that nothing refers to closes itself in the middle of its call.
    through = through or client(fake)
    return through.models.embed_content(
        model=model,
        contents=[types.Content(parts=[types.Part(text=text)]) for text in texts],
        config=types.EmbedContentConfig(**{"output_dimensionality": 8, **config}),
    )


def vectors(answer):
    return np.array([embedding.values for embedding in answer.embeddings])


def refusal(fake, texts, **config):
    with pytest.raises(errors.APIError) as caught:
        embed(fake, texts, **config)
    return caught.value


def detail(error, kind):
    found = [entry for entry in error.details["error"].get("details", []) if entry["@type"].endswith("." + kind)]
    return found[0] if found else None


def post(fake, path, body, headers=None):
    """Without the SDK: the status and the parsed body."""
    request = urllib.request.Request(
        fake.url + path,
        json.dumps(body).encode(),
        {"x-goog-api-key": KEY, "Content-Type": "application/json"} if headers is None else headers,
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def one(text, **fields):
    return {"model": f"models/{TWO}", "content": {"parts": [{"text": text}]}, **fields}


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_the_sdk_is_answered_with_the_vectors_that_the_fake_foretells(fake, version):
    answer = embed(fake, ["parse a date", "read a table"], through=client(fake, version=version))
    assert vectors(answer).tolist() == [
        fake.vector("parse a date", dimensions=8).tolist(),
        fake.vector("read a table", dimensions=8).tolist(),
    ]
    assert fake.requests[0].path == f"/{version}/models/{TWO}:batchEmbedContents"


def test_a_list_of_strings_collapses_into_one_vector_for_model_2_and_for_unknown_models_but_not_for_001(fake):
    through = client(fake)

    def count(model):
        return len(through.models.embed_content(model=model, contents=["a", "b"]).embeddings)

    assert [count(TWO), count("gemini-embedding-9-test"), count(ONE)] == [1, 1, 2]
    assert [received.texts for received in fake.requests] == [["a\nb"], ["a\nb"], ["a", "b"]]
    assert len(embed(fake, ["a", "b"]).embeddings) == 2


def test_a_text_has_the_same_vector_always(fake):
    texts = [f"word{number} and some more" for number in range(90)]
    alone = vectors(embed(fake, texts[40:41]))
    assert vectors(embed(fake, texts))[40].tolist() == alone[0].tolist()
    with FakeGemini() as other:
        assert vectors(embed(other, texts[::-1]))[49].tolist() == alone[0].tolist()


@pytest.mark.parametrize("dimensions", [1, 8, 768, 1536, 3072])
def test_model_2_is_of_unit_length_at_every_size_and_a_shorter_vector_is_the_beginning_of_a_longer_one(
    fake, dimensions
):
    text = DOCUMENT + "the lazy dog jumps over the quick brown fox"
    got = vectors(embed(fake, [text], output_dimensionality=dimensions))[0]
    assert len(got) == dimensions
    assert np.linalg.norm(got) == pytest.approx(1, abs=1e-6)
    full = fake.vector(text, dimensions=3072)[:dimensions]
    assert got == pytest.approx(full / np.linalg.norm(full), abs=1e-6)


@pytest.mark.parametrize(("dimensions", "length"), [(768, 0.7), (1536, 0.7), (3072, 1)])
def test_001_is_of_unit_length_only_at_full_size(fake, dimensions, length):
    got = vectors(embed(fake, ["some words"], model=ONE, output_dimensionality=dimensions))[0]
    assert np.linalg.norm(got) == pytest.approx(length, abs=1e-6)


def test_without_a_size_a_vector_is_full(fake):
    assert vectors(embed(fake, ["some words"], output_dimensionality=None)).shape == (1, 3072)


def test_texts_that_share_words_are_near(fake):
    near, far, query = vectors(
        embed(
            fake,
            [DOCUMENT + "parse a date from text", DOCUMENT + "comma separated values", QUERY + "parse date"],
            output_dimensionality=768,
        )
    )
    assert query @ near > 0.5
    assert abs(query @ far) < 0.2


def test_a_query_is_near_the_document_of_its_words_and_a_text_without_a_prefix_is_farther(fake):
    query, document, bare = (fake.vector(prefix + "parse a date") for prefix in (QUERY, DOCUMENT, ""))
    assert 0.85 < query @ document < 0.98
    assert query @ bare < 0.75


def test_every_task_has_a_direction_of_its_own(fake):
    tasks = ("search result", "question answering", "fact checking", "code retrieval", "classification", "clustering")
    found = [fake.vector(f"task: {task} | query: parse a date") for task in tasks]
    for place, vector in enumerate(found):
        assert all(vector @ other < 0.98 for other in found[:place])


def test_model_2_counts_a_documents_title_as_words(fake):
    titled = fake.vector("title: Zebras | text: they cross the street")
    assert titled @ fake.vector(QUERY + "zebras") > fake.vector(DOCUMENT + "they cross the street") @ fake.vector(
        QUERY + "zebras"
    )


def test_model_2_ignores_the_task_type_and_001_does_not(fake):
    def pair(model):
        first, second = (
            vectors(embed(fake, ["a b c"], model=model, task_type=task, output_dimensionality=3072))[0]
            for task in ("RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT")
        )
        return first @ second

    assert pair(TWO) == pytest.approx(1)
    assert 0.85 < pair(ONE) < 0.98


def test_001_takes_a_title_for_documents_only(fake):
    titled = vectors(
        embed(fake, ["they cross"], model=ONE, task_type="RETRIEVAL_DOCUMENT", title="Zebras", output_dimensionality=64)
    )[0]
    assert (
        titled.tolist()
        == fake.vector("they cross", model=ONE, task_type="RETRIEVAL_DOCUMENT", title="Zebras", dimensions=64).tolist()
    )
    assert refusal(fake, ["they cross"], model=ONE, task_type="RETRIEVAL_QUERY", title="Zebras").code == 400


def test_models_are_spaces_of_their_own(fake):
    text = DOCUMENT + "parse a date"
    found = [fake.vector(text, model=model) for model in (ONE, TWO, "gemini-embedding-9-test")]
    assert all(abs(a @ b) < 0.2 for a, b in zip(found, found[1:] + found[:1], strict=True))


@pytest.mark.parametrize("text", ["!!!", " ", "\n", "日本語", "😀"])
def test_a_text_without_known_words_has_a_vector_too(fake, text):
    assert np.linalg.norm(vectors(embed(fake, [text]))[0]) == pytest.approx(1, abs=1e-6)


def test_tokens_are_told_for_model_2_only(fake):
    assert embed(fake, ["a" * 10, "b" * 4]).usage_metadata.prompt_token_count == 4
    assert embed(fake, ["a" * 10], model=ONE).usage_metadata is None


def test_numbers_are_rendered_as_they_are(fake):
    units = np.array([[0, 1, -1, 99_999_999, -99_999_999, 100_000_000, -100_000_000, 12_345_678]])
    assert json.loads(fake_gemini._render(units)[0]) == (units[0] / 1e8).tolist()  # noqa: SLF001 - nothing else shows it


def test_a_batch_is_answered_quickly(fake):
    words = [f"word{number}" for number in range(500)]
    texts = [" ".join(words[(start * 7 + step) % 500] for step in range(80)) for start in range(100)]
    body = {"requests": [one(DOCUMENT + text, outputDimensionality=768) for text in texts]}
    path, raw = f"/v1beta/models/{TWO}:batchEmbedContents", json.dumps(body).encode()
    spent = []
    for _ in range(6):
        before = time.thread_time()
        fake.answer("POST", path, {"x-goog-api-key": KEY}, raw)
        spent.append(time.thread_time() - before)
    # It takes 9 ms; json.dumps alone would take 60.
    assert min(spent) < 0.04


def test_a_request_is_recorded_as_it_arrived(fake):
    before = time.monotonic()
    embed(fake, ["a", "b"], output_dimensionality=16)
    received = fake.requests[0]
    assert before < received.time < time.monotonic()
    assert (received.method, received.status, received.fault) == ("POST", 200, None)
    assert received.headers["x-goog-api-key"] == KEY
    assert received.headers["x-server-timeout"] == "5"
    assert received.texts == ["a", "b"]
    assert received.body["requests"][0] == one("a", outputDimensionality=16)


def test_only_texts_that_were_answered_well_count_as_embedded(fake):
    fake.faults.extend(["500", "truncated", "wrong-dims"])
    assert refusal(fake, ["a"]).code == 500
    with pytest.raises(json.JSONDecodeError):
        embed(fake, ["a"])
    embed(fake, ["a"])
    assert not fake.embedded
    embed(fake, [DOCUMENT + "a", DOCUMENT + "a", "b"])
    assert fake.embedded == {DOCUMENT + "a": 2, "b": 1}


def test_requests_are_answered_at_the_same_time_over_kept_connections():
    with FakeGemini(latency_seconds=0.2) as fake:
        through = client(fake)
        before = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: embed(fake, [f"text {number}"], through=through), range(8)))
        assert 0.2 < time.monotonic() - before < 1.2
        assert len(fake.embedded) == 8


def test_one_connection_serves_many_requests(fake):
    connection = http.client.HTTPConnection(fake.url.removeprefix("http://"))
    connection.connect()
    opened = connection.sock
    for _ in range(3):
        connection.request("GET", f"/v1beta/models/{TWO}", headers={"x-goog-api-key": KEY})
        assert connection.getresponse().read()
        assert connection.sock is opened
    connection.close()


def test_a_wrong_key_is_an_invalid_argument(fake):
    error = refusal(fake, ["a"], through=client(fake, key="wrong"))
    assert (error.code, error.status) == (400, "INVALID_ARGUMENT")
    assert error.message == "API key not valid. Please pass a valid API key."
    assert detail(error, "ErrorInfo") == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }


def test_no_key_is_forbidden_and_a_key_in_the_url_is_not_valid(fake):
    path, body = f"/v1beta/models/{TWO}:batchEmbedContents", {"requests": [one("a")]}
    status, answer = post(fake, path, body, headers={})
    assert (status, answer["error"]["status"]) == (403, "PERMISSION_DENIED")
    assert post(fake, f"{path}?key={KEY}", body, headers={})[0] == 400
    assert post(fake, f"{path}?key={KEY}", body)[0] == 400
    assert post(fake, path, body)[0] == 200


def test_a_refused_key_uses_up_no_fault(fake):
    fake.faults.append("500")
    assert refusal(fake, ["a"], through=client(fake, key="wrong")).code == 400
    assert refusal(fake, ["a"]).code == 500
    assert [received.fault for received in fake.requests] == [None, "500"]


def test_the_key_can_be_another():
    with FakeGemini(key="AIzaOther") as fake:
        embed(fake, ["a"], through=client(fake, key="AIzaOther"))
        assert refusal(fake, ["a"]).code == 400


@pytest.mark.parametrize("model", ["text-embedding-004", "gemini-embedding-3"])
def test_retired_and_unknown_models_are_not_found(fake, model):
    error = refusal(fake, ["a"], model=model)
    assert (error.code, error.status) == (404, "NOT_FOUND")
    assert error.message.startswith(
        f"models/{model} is not found for API version v1beta, or is not supported for embedContent."
    )


def test_a_batch_has_a_hundred_texts_at_most(fake):
    assert len(embed(fake, ["a"] * 100).embeddings) == 100
    error = refusal(fake, ["a"] * 101)
    assert error.code == 400
    assert "BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch" in error.message


def test_an_empty_text_refuses_the_whole_batch(fake):
    error = refusal(fake, ["a", ""])
    assert error.code == 400
    assert error.message.endswith("content contains an empty Part.")
    assert not fake.embedded


@pytest.mark.parametrize("dimensions", [0, -1, 3073])
def test_a_size_out_of_bounds_is_refused(fake, dimensions):
    assert refusal(fake, ["a"], output_dimensionality=dimensions).code == 400


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        {"requests": []},
        {"requests": "a"},
        {"requests": [1]},
        {"requests": [one("a", outputDimensions=8)]},
        {"requests": [one("a", taskType="SEARCH")]},
        {"requests": [one("a", title=5)]},
        {"requests": [{**one("a"), "model": "models/gemini-embedding-001"}]},
        {"requests": [{"content": {"parts": [{"text": "a"}]}}]},
        {"requests": [{"model": f"models/{TWO}", "content": {"parts": 5}}]},
        {"requests": [{"model": f"models/{TWO}", "content": {"parts": [{"text": 5}]}}]},
        {"requests": [{"model": f"models/{TWO}", "content": {"parts": []}}]},
        {"requests": [{"model": f"models/{TWO}"}]},
    ],
    ids=json.dumps,
)
def test_what_is_no_request_is_an_invalid_argument(fake, body):
    status, answer = post(fake, f"/v1beta/models/{TWO}:batchEmbedContents", body)
    assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_a_payload_is_four_mebibytes_at_most():
    with FakeGemini(overflow="cut") as fake:
        assert embed(fake, ["a" * 40_000] * 100).embeddings
        error = refusal(fake, ["a" * 42_000] * 100)
        assert (error.code, "4194304 bytes" in error.message) == (400, True)


@pytest.mark.parametrize(("model", "tokens"), [(ONE, 2048), (TWO, 8192)])
def test_a_text_over_the_models_limit_is_refused_or_silently_cut(fake, model, tokens):
    fits, over = "word " * (tokens * 4 // 5), "word " * (tokens * 4 // 5) + "zebras" * 2
    assert vectors(embed(fake, [fits], model=model)).shape == (1, 8)
    assert refusal(fake, [over], model=model).code == 400
    with FakeGemini(overflow="cut") as cutting:
        got = vectors(embed(cutting, ["word " * (tokens * 4 // 5) + " " * 9 + "zebras"], model=model))
        assert got.tolist() == vectors(embed(fake, [fits], model=model)).tolist()


def test_a_poisoned_text_refuses_every_batch_it_is_in(fake):
    fake.poison.add("curare")
    error = refusal(fake, ["good", "a drop of curare"])
    assert (error.code, error.status) == (400, "INVALID_ARGUMENT")
    assert embed(fake, ["good"]).embeddings
    assert fake.embedded == {"good": 1}


def test_every_text_of_a_batch_counts_and_a_refused_batch_costs_nothing():
    with FakeGemini(texts_per_minute=10, window_seconds=1) as fake:
        embed(fake, ["a"] * 6)
        error = refusal(fake, ["a"] * 5)
        assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
        (violation,) = detail(error, "QuotaFailure")["violations"]
        assert violation == {
            "quotaMetric": "generativelanguage.googleapis.com/embed_content_free_tier_requests",
            "quotaId": "EmbedContentRequestsPerMinutePerUserPerProjectPerModel-FreeTier",
            "quotaDimensions": {"location": "global", "model": TWO},
            "quotaValue": "10",
        }
        assert detail(error, "Help")["links"]
        delay = detail(error, "RetryInfo")["retryDelay"]
        assert 0 < float(delay.removesuffix("s")) <= 1
        assert f"Please retry in {delay}." in error.message
        assert embed(fake, ["a"] * 4).embeddings
        time.sleep(float(delay.removesuffix("s")))
        assert embed(fake, ["a"] * 6).embeddings


def test_a_model_has_a_quota_of_its_own():
    with FakeGemini(texts_per_minute=1) as fake:
        embed(fake, ["a"])
        assert embed(fake, ["a"], model=ONE).embeddings
        assert refusal(fake, ["a"]).code == 429


def test_tokens_are_a_quota_too():
    with FakeGemini(tokens_per_minute=100) as fake:
        embed(fake, ["a" * 200])
        (violation,) = detail(refusal(fake, ["a" * 204]), "QuotaFailure")["violations"]
        assert violation["quotaId"] == "EmbedContentInputTokensPerMinutePerUserPerProjectPerModel-FreeTier"
        assert violation["quotaValue"] == "100"
        embed(fake, ["a" * 200])


def test_a_day_gives_so_many_texts_and_no_time_to_wait_for():
    with FakeGemini(texts_per_day=3) as fake:
        embed(fake, ["a"] * 2)
        error = refusal(fake, ["a"] * 2)
        (violation,) = detail(error, "QuotaFailure")["violations"]
        assert violation["quotaId"] == "EmbedContentRequestsPerDayPerUserPerProjectPerModel-FreeTier"
        assert detail(error, "RetryInfo") is None
        embed(fake, ["a"])


@pytest.mark.parametrize("fault", [None, "429", "429-daily"])
def test_a_quota_need_not_be_told(fault):
    with FakeGemini(texts_per_minute=0, tell_quota=False) as fake:
        fake.always = fault
        error = refusal(fake, ["a"])
        assert "quotaValue" not in detail(error, "QuotaFailure")["violations"][0]
        assert "limit:" not in error.message


def test_tokens_are_counted_and_a_model_is_described(fake):
    through = client(fake)
    assert through.models.count_tokens(model=TWO, contents=["a" * 9]).total_tokens == 3
    described = through.models.get(model=ONE)
    assert (described.name, described.input_token_limit) == (f"models/{ONE}", 2048)
    with pytest.raises(errors.ClientError, match="is not found for API version v1beta"):
        through.models.get(model="text-embedding-004")


def test_a_single_text_may_be_embedded_by_rest(fake):
    path = f"/v1beta/models/{TWO}:embedContent"
    status, answer = post(fake, path, {"content": {"parts": [{"text": "a"}]}, "output_dimensionality": 8})
    assert (status, answer["embedding"]["values"]) == (200, fake.vector("a", dimensions=8).tolist())
    nested = {"content": {"parts": [{"text": "a"}]}, "embedContentConfig": {"outputDimensionality": 8}}
    assert post(fake, path, nested)[1] == answer


def test_the_retired_sdks_dialect_is_understood(fake):
    path = f"/v1beta/models/{ONE}:batchEmbedContents?%24alt=json%3Benum-encoding%3Dint"
    request = {**one("a", taskType=2, title="T", outputDimensionality=8), "model": f"models/{ONE}"}
    expected = fake.vector("a", model=ONE, task_type="RETRIEVAL_DOCUMENT", title="T", dimensions=8)
    assert post(fake, path, {"requests": [request]}) == (200, {"embeddings": [{"values": expected.tolist()}]})
    assert fake.requests[0].path == path


def test_an_unknown_path_is_a_page(fake):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(fake.url + "/v2/models")
    with caught.value as error:
        assert (error.code, error.headers["Content-Type"]) == (404, "text/html; charset=UTF-8")


@pytest.fixture
def vertex(fake, service_account):
    """The SDK with a service account whose tokens come from the fake."""
    return genai.Client(vertexai=True, project="p", location="us-central1", http_options=options(fake, timeout=5000))


@pytest.mark.parametrize(
    ("texts", "action"), [(["a b"], "embedContent"), (["a b", "c"], "batchEmbedContents")], ids=["one", "many"]
)
@pytest.mark.parametrize("model", [ONE, TWO])
def test_vertex_is_reached_with_a_service_account(fake, vertex, model, texts, action):
    answer = embed(fake, texts, through=vertex, model=model, task_type="RETRIEVAL_DOCUMENT")
    expected = [fake.vector(text, model=model, task_type="RETRIEVAL_DOCUMENT", dimensions=8) for text in texts]
    assert vectors(answer).tolist() == [vector.tolist() for vector in expected]
    token, received = fake.requests
    assert (token.path, token.status) == ("/token", 200)
    assert received.path == (f"/v1beta1/projects/p/locations/us-central1/publishers/google/models/{model}:{action}")
    assert received.headers["authorization"] == "Bearer fake-token"
    assert received.texts == texts


def test_vertex_takes_no_other_token(fake, vertex):
    path = f"/v1beta1/projects/p/locations/l/publishers/google/models/{TWO}:embedContent"
    body = {"content": {"parts": [{"text": "a"}]}}
    for headers in ({}, {"Authorization": "Bearer other"}, {"x-goog-api-key": KEY}):
        status, answer = post(fake, path, body, headers=headers)
        assert (status, answer["error"]["status"]) == (401, "UNAUTHENTICATED")
    assert post(fake, "/token", {})[0] == 400
    with pytest.raises(errors.ClientError, match="Publisher Model"):
        embed(fake, ["a"], through=vertex, model="gemini-embedding-3")


TEXTS = ["parse a date", "read a table", "cross the street", "peel an orange"]


@pytest.fixture
def right(fake):
    return [fake.vector(text, dimensions=8).tolist() for text in TEXTS]


@pytest.mark.parametrize(
    ("fault", "kind", "code", "status"),
    [
        ("429", "ClientError", 429, "RESOURCE_EXHAUSTED"),
        ("429-bare", "ClientError", 429, "RESOURCE_EXHAUSTED"),
        ("429-daily", "ClientError", 429, "RESOURCE_EXHAUSTED"),
        ("429-limit-0", "ClientError", 429, "RESOURCE_EXHAUSTED"),
        ("400-key", "ClientError", 400, "INVALID_ARGUMENT"),
        ("401", "ClientError", 401, "UNAUTHENTICATED"),
        ("403", "ClientError", 403, "PERMISSION_DENIED"),
        ("404", "ClientError", 404, "NOT_FOUND"),
        ("408", "ClientError", 408, "DEADLINE_EXCEEDED"),
        ("500", "ServerError", 500, "INTERNAL"),
        ("502-html", "ServerError", 502, "Bad Gateway"),
        ("503", "ServerError", 503, "UNAVAILABLE"),
        ("504", "ServerError", 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_a_refusing_fault_refuses_one_request(fake, fault, kind, code, status):
    fake.faults.append(fault)
    error = refusal(fake, TEXTS)
    assert (type(error).__name__, error.code, error.status) == (kind, code, status)
    assert (fake.requests[0].fault, fake.requests[0].status) == (fault, code)
    assert len(embed(fake, TEXTS).embeddings) == 4


def test_the_kinds_of_429_are_told_apart_by_their_details(fake):
    def told(fault):
        fake.faults.append(fault)
        error = refusal(fake, ["a"])
        quota, retry = detail(error, "QuotaFailure"), detail(error, "RetryInfo")
        violation = quota and quota["violations"][0]
        return (
            violation and violation["quotaId"].partition("Per")[2].partition("Per")[0],
            violation and violation["quotaValue"],
            retry and retry["retryDelay"],
            "limit: 0" in error.message,
        )

    assert told("429") == ("Minute", "100", "0.3s", False)
    assert told("429-bare") == (None, None, None, False)
    assert told("429-daily") == ("Day", "1000", "3600s", False)
    assert told("429-limit-0") == ("Minute", "0", "0.3s", True)
    fake.faults.append("429-limit-0")
    assert detail(refusal(fake, ["a"]), "ErrorInfo")["metadata"]["quota_limit_value"] == "0"


def test_a_proxys_page_has_no_error_object(fake):
    fake.faults.append("502-html")
    assert set(refusal(fake, ["a"]).details) == {"message", "status"}


@pytest.mark.parametrize(
    ("fault", "spoil"),
    [
        ("wrong-dims", lambda v: [values[:-1] for values in v]),
        ("wrong-dims-one", lambda v: [*v[:2], v[2][:-1], v[3]]),
        ("too-few", lambda v: v[:3]),
        ("too-many", lambda v: [*v, v[3]]),
        ("empty-values", lambda v: [*v[:2], [], v[3]]),
        ("null-values", lambda v: [*v[:2], None, v[3]]),
        ("infinite", lambda v: [*v[:2], [math.inf, *v[2][1:]], v[3]]),
        ("zeros", lambda v: [*v[:2], [0.0] * 8, v[3]]),
        ("reordered", lambda v: v[::-1]),
        ("rotated", lambda v: [*v[1:], v[0]]),
    ],
)
def test_a_spoiled_answer_passes_the_sdk(fake, right, fault, spoil):
    fake.faults.append(fault)
    assert [embedding.values for embedding in embed(fake, TEXTS).embeddings] == spoil(right)
    assert fake.requests[0].status == 200


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shuffled_answers_are_all_there_in_another_order(fake, right, count):
    fake.faults.append("shuffled")
    got = [embedding.values for embedding in embed(fake, TEXTS[:count]).embeddings]
    assert got != right[:count]
    assert sorted(got) == sorted(right[:count])


def test_a_nan_passes_the_sdk(fake, right):
    fake.faults.append("nan")
    got = vectors(embed(fake, TEXTS))
    assert np.argwhere(np.isnan(got)).tolist() == [[2, 0]]


def test_values_that_are_no_numbers_do_not(fake):
    fake.faults.append("strings")
    with pytest.raises(pydantic.ValidationError):
        embed(fake, TEXTS)


@pytest.mark.parametrize("fault", ["truncated", "malformed", "html"])
def test_an_answer_that_is_no_json_is_a_json_error(fake, fault):
    fake.faults.append(fault)
    with pytest.raises(json.JSONDecodeError):
        embed(fake, TEXTS)
    assert fake.requests[0].status == 200


def test_an_empty_body_is_an_answer_without_embeddings(fake):
    fake.faults.append("empty-body")
    assert embed(fake, TEXTS).embeddings is None


@pytest.mark.parametrize("fault", ["drop", "drop-mid"])
def test_a_dropped_connection_is_a_protocol_error_and_the_next_request_gets_a_new_one(fake, fault):
    through = client(fake)
    embed(fake, ["a"], through=through)
    fake.faults.append(fault)
    with pytest.raises(httpx2.RemoteProtocolError):
        embed(fake, TEXTS, through=through)
    assert fake.requests[-1].status is None
    assert embed(fake, ["a"], through=through).embeddings


def test_a_hanging_request_times_out(fake):
    fake.faults.append("hang")
    with pytest.raises(httpx2.ReadTimeout):
        embed(fake, ["a"], through=client(fake, timeout=200))
    assert (fake.requests[0].fault, fake.requests[0].status) == ("hang", None)


@pytest.mark.parametrize("fault", ["drip", "drip-head"])
def test_a_dripping_answer_outlives_the_sdks_timeout(fake, fault):
    fake.faults.append(fault)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(embed, fake, TEXTS, through=client(fake, timeout=400))
        time.sleep(1)
        assert not pending.done()
        fake.closing.set()
        assert isinstance(pending.exception(5), httpx2.RemoteProtocolError)


def test_the_sdk_follows_a_redirect_and_takes_the_key_along(fake):
    fake.faults.append("redirect")
    assert embed(fake, ["a"]).embeddings is None
    assert fake.followed
    first, second = fake.requests
    assert (first.status, second.method, second.path) == (302, "GET", "/elsewhere")
    assert second.headers["host"] != first.headers["host"]
    assert second.headers["x-goog-api-key"] == KEY


def test_nothing_is_followed_by_itself(fake):
    embed(fake, ["a"])
    assert not fake.followed


def test_a_fault_may_stand_for_every_request_behind_those_in_line(fake):
    fake.always = "503"
    fake.faults.extend(["500", "404"])
    assert [refusal(fake, ["a"]).code for _ in range(4)] == [500, 404, 503, 503]
    fake.always = None
    assert embed(fake, ["a"]).embeddings


def test_faults_befall_embed_requests_only(fake):
    fake.always = "500"
    through = client(fake)
    assert through.models.count_tokens(model=TWO, contents=["a"]).total_tokens == 1


@pytest.mark.parametrize("fault", sorted(FAULTS - {"hang", "drip", "drip-head"}))
def test_every_fault_befalls_a_single_text_too(fake, fault):
    """The Vertex door and a batch of one: nothing in the fake breaks, which would be raised when it closes."""
    fake.always = fault
    body = {"content": {"parts": [{"text": "a"}]}, "outputDimensionality": 1}
    for path, sent in (("embedContent", body), ("batchEmbedContents", {"requests": [{**body, **one("a")}]})):
        connection = http.client.HTTPConnection(fake.url.removeprefix("http://"), timeout=5)
        try:
            connection.request("POST", f"/v1/models/{TWO}:{path}", json.dumps(sent), {"x-goog-api-key": KEY})
            connection.getresponse().read()
        except (http.client.HTTPException, ConnectionError):
            assert fault in {"drop", "drop-mid"}
        finally:
            connection.close()
    assert [received.fault for received in fake.requests] == [fault, fault]


def test_an_unknown_fault_is_the_tests_mistake():
    def misspelt():
        with FakeGemini() as fake:
            fake.faults.append("500-ish")
            with pytest.raises(httpx2.RemoteProtocolError):
                embed(fake, ["a"])

    with pytest.raises(ExceptionGroup) as caught:
        misspelt()
    assert caught.group_contains(ValueError, match="no such fault: 500-ish")


@pytest.mark.parametrize("fault", ["hang", "drip", "drip-head"])
def test_closing_releases_whoever_waits(fault):
    threads = threading.active_count()
    with ThreadPoolExecutor(1) as pool:
        with FakeGemini() as fake:
            fake.faults.append(fault)
            pending = pool.submit(embed, fake, ["a"], through=client(fake, timeout=60_000))
            while not fake.requests:
                time.sleep(0.01)
            before = time.monotonic()
        assert time.monotonic() - before < 1
        assert isinstance(pending.exception(5), httpx2.HTTPError)
    assert threading.active_count() <= threads


def test_as_a_program_it_prints_its_url_and_nothing_else(capfd):
    command = [sys.executable, "-W", "error", str(Path(fake_gemini.__file__)), "--texts-per-minute", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            served = SimpleNamespace(url=process.stdout.readline().strip())
            assert vectors(embed(served, ["a"])).shape == (1, 8)
            assert refusal(served, ["a"]).code == 429
        finally:
            process.kill()
        assert process.communicate() == ("", "")


def test_it_never_prints(capfd):
    with FakeGemini() as fake:
        fake.faults.extend(["500", "drop"])
        for _ in range(2):
            with pytest.raises((errors.APIError, httpx2.HTTPError)):
                embed(fake, ["a"])
    assert capfd.readouterr() == ("", "")
