import gzip
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from fake_gemini import FAULTS, KEY, FakeGemini

from datasette_vec_gemini.access import Access
from datasette_vec_gemini.embedders import gemini, google_generativeai, remote
from datasette_vec_gemini.embedders.google_generativeai import LegacyService
from datasette_vec_gemini.embedders.service import Reply, Transient
from datasette_vec_gemini.errors import EmbedderError, EmbedderUnavailable, EmbeddingFailed, ServiceUnavailable

pytestmark = pytest.mark.slow

MODELS = ("gemini-embedding-001", "gemini-embedding-2")
TEXTS = ["the cat sat on the mat", "вектор", "東京の天気", "a", "x" * 500]
INSTALL = "pip install 'datasette-vec-gemini[google-generativeai]'"


@pytest.fixture
def sdk() -> None:
    # Its dependency, which does not warn when it is imported.
    pytest.importorskip("google.ai.generativelanguage", reason=f"the retired SDK is not here: {INSTALL}")


@pytest.fixture
def fake() -> Iterator[FakeGemini]:
    with FakeGemini() as server:
        yield server


@pytest.fixture
def access(fake) -> Callable[..., Access]:
    def make(**options) -> Access:
        settings = {"api_key": KEY, "key_source": "a test", "base_url": fake.url, "patience_seconds": 1.0}
        return Access(**settings | options)

    return make


@pytest.fixture
def embedder(access, sdk):
    return google_generativeai.load("", access())


def embed(service: LegacyService, texts=("a text",), *, task=None, timeout_seconds: float = 5.0) -> Reply:
    return service.embed(texts, task=task, title=None, dimensions=768, timeout_seconds=timeout_seconds)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In another process, where any warning is an error."""
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """The URL of a server that always answers this, in chunks."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for place in range(0, len(body), 7):
                piece = body[place : place + 7]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("model", MODELS)
def test_its_vectors_are_those_of_gemini(access, sdk, model):
    ours, living = (module.load(f":{model}", access()) for module in (google_generativeai, gemini))
    assert ours.fingerprint == living.fingerprint
    for title in (None, "A title"):
        expected = living.embed_documents(TEXTS, title=title)
        assert np.allclose(ours.embed_documents(TEXTS, title=title), expected, atol=1e-6)
    for task in ("RETRIEVAL_QUERY", "SEMANTIC_SIMILARITY", "QUESTION_ANSWERING"):
        assert np.allclose(ours.embed_query("cat", task=task), living.embed_query("cat", task=task), atol=1e-6)


def test_a_batch_is_split_and_keeps_its_order(access, fake, sdk):
    texts = [f"number {n} of many" for n in range(230)]
    found = google_generativeai.load("", access(texts_per_request=50)).embed_documents(texts)
    assert [request.status for request in fake.requests] == [200] * 5
    assert np.allclose(found, gemini.load("", access()).embed_documents(texts), atol=1e-6)


@pytest.mark.parametrize(
    ("task", "number"),
    [
        ("RETRIEVAL_QUERY", 1),
        ("SEMANTIC_SIMILARITY", 3),
        ("CLASSIFICATION", 4),
        ("CLUSTERING", 5),
        ("QUESTION_ANSWERING", 6),
        ("FACT_VERIFICATION", 7),
    ],
)
def test_001_is_told_the_task_by_its_type(access, fake, sdk, task, number):
    google_generativeai.load(":gemini-embedding-001@256", access()).embed_query("a question", task=task)
    assert fake.requests[0].body == {
        "requests": [
            {
                "model": "models/gemini-embedding-001",
                "content": {"parts": [{"text": "a question"}]},
                "taskType": number,
                "outputDimensionality": 256,
            }
        ]
    }


def test_001_is_told_the_title(access, fake, sdk):
    google_generativeai.load(":gemini-embedding-001", access()).embed_documents(["one", "two"], title="A title")
    (request,) = fake.requests
    assert {(r["taskType"], r["title"], r["outputDimensionality"]) for r in request.body["requests"]} == {
        (2, "A title", 768)
    }
    assert {"one", "two"} < set(request.texts)


def test_2_is_told_the_task_and_title_in_the_text_only(embedder, fake):
    embedder.embed_documents(["one"], title="A title")
    embedder.embed_query("two")
    embedder.embed_query("three", task="CODE_RETRIEVAL_QUERY")
    assert [request.texts for request in fake.requests] == [
        ["title: A title | text: one"],
        ["task: search result | query: two"],
        ["task: code retrieval | query: three"],
    ]
    assert all(
        set(r) == {"model", "content", "outputDimensionality"} for q in fake.requests for r in q.body["requests"]
    )


def test_a_task_unknown_to_the_sdk_is_refused_unasked(access, fake):
    with pytest.raises(EmbeddingFailed, match="CODE_RETRIEVAL_QUERY: use the embedder gemini"):
        embed(LegacyService(access(), "gemini-embedding-001"), task="CODE_RETRIEVAL_QUERY")
    assert not fake.requests


def test_the_key_goes_in_one_header_and_nowhere_else(embedder, fake):
    embedder.embed_documents(["one"])
    (request,) = fake.requests
    assert [name for name, value in request.headers.items() if KEY in value] == ["x-goog-api-key"]
    assert KEY not in request.path
    assert KEY not in json.dumps(request.body)


def test_no_password_of_a_netrc_goes_along(embedder, fake, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    embedder.embed_documents(["one"])
    assert "authorization" not in fake.requests[0].headers


def test_two_accesses_do_not_disturb_each_other(access, fake, sdk):
    with FakeGemini(key="another-key") as other:
        first = LegacyService(access(), "gemini-embedding-2")
        second = LegacyService(access(api_key="another-key", base_url=other.url), "gemini-embedding-2")
        for service in (first, second, first, second):
            embed(service)
        assert [len(fake.requests), len(other.requests)] == [2, 2]


# Not "shuffled", which can leave the one text that tells in its place; whether that is noticed is not this adapter's.
@pytest.mark.parametrize("fault", sorted(FAULTS - {"shuffled"}))
def test_a_fault_gives_right_vectors_or_an_error_of_ours_soon(embedder, fake, fault, monkeypatch, caplog):
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 1.0)
    caplog.set_level(logging.DEBUG)
    expected = embedder.embed_documents(["one", "two", "three"])
    fake.always = fault
    began = time.monotonic()
    told = ""
    try:
        found = embedder.embed_documents(["one", "two", "three"])
    except EmbedderError as error:
        told = "".join(traceback.format_exception(error))
    # What is only out of order is right when it is asked for one by one.
    assert bool(told) == (fault not in {"reordered", "rotated"})
    assert told or np.array_equal(found, expected)
    assert KEY not in told
    assert time.monotonic() - began < 8
    assert KEY not in caplog.text
    assert not fake.followed


@pytest.mark.parametrize(
    "fault", ["400-key", "401", "403", "408", "429", "500", "502-html", "503", "504", "drop", "hang"]
)
def test_an_attempt_is_one_request(access, fake, sdk, fault):
    fake.always = fault
    with pytest.raises((EmbedderError, Transient)):
        embed(LegacyService(access(), "gemini-embedding-2"), timeout_seconds=1)
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("fault", "may_be_billed"),
    [("hang", True), ("drop", True), ("drop-mid", True), ("malformed", True), ("html", True), ("503", False)],
)
def test_what_may_be_tried_again_says_whether_it_may_be_billed(access, fake, sdk, fault, may_be_billed):
    fake.always = fault
    with pytest.raises(Transient) as caught:
        embed(LegacyService(access(), "gemini-embedding-2"), timeout_seconds=1)
    assert caught.value.may_be_billed is may_be_billed


def test_where_nothing_listens_nothing_is_billed(access, sdk):
    with FakeGemini() as gone:
        pass
    with pytest.raises(Transient, match="no connection") as caught:
        embed(LegacyService(access(base_url=gone.url), "gemini-embedding-2"))
    assert not caught.value.may_be_billed


def test_the_time_that_the_service_names_is_kept(access, fake, sdk):
    fake.always = "429"
    with pytest.raises(Transient) as caught:
        embed(LegacyService(access(), "gemini-embedding-2"))
    assert (caught.value.retry_after, caught.value.texts_per_minute) == (0.3, 100)


def test_an_answer_that_drips_is_cut_off_at_the_timeout(access, fake, sdk):
    fake.always = "drip"
    began = time.monotonic()
    with pytest.raises(Transient, match="in time"):
        embed(LegacyService(access(), "gemini-embedding-2"), timeout_seconds=1)
    assert time.monotonic() - began < 2


def test_a_question_is_not_waited_for_longer_than_its_time(access, fake, sdk):
    embedder = google_generativeai.load("", access(query_seconds=0.5))
    embedder.prepare()
    fake.always = "hang"
    began = time.monotonic()
    with pytest.raises(ServiceUnavailable):
        embedder.embed_query("one")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("body", [b'{"error": "bad gateway"}', b'["error"]', b"null", b"", b"\xff"])
def test_an_error_of_a_proxy_needs_no_shape(access, sdk, body):
    with answering(502, body) as url, pytest.raises(Transient, match="502"):
        embed(LegacyService(access(base_url=url), "gemini-embedding-2"))


@pytest.mark.parametrize("compressed", [False, True])
def test_an_answer_in_chunks_is_read_to_its_end(access, sdk, compressed):
    body = json.dumps({"embeddings": [{"values": [0.25, 0.5, -1.0] * 256}]}).encode()
    headers = {"Content_Encoding": "gzip"} if compressed else {}
    with answering(200, gzip.compress(body) if compressed else body, **headers) as url:
        reply = embed(LegacyService(access(base_url=url), "gemini-embedding-2"))
    assert reply.vectors == [[0.25, 0.5, -1.0] * 256]


def test_an_answer_too_long_is_not_read(access, sdk, monkeypatch):
    monkeypatch.setattr(google_generativeai, "ANSWER_BYTES", 1_000)
    with answering(200, b" " * 5_000) as url, pytest.raises(Transient):
        embed(LegacyService(access(base_url=url), "gemini-embedding-2"))


def test_a_path_in_the_address_is_kept(access, fake, sdk):
    with pytest.raises(EmbedderUnavailable, match="404"):
        embed(LegacyService(access(base_url=f"{fake.url}/proxy/"), "gemini-embedding-2"))
    assert fake.requests[0].path.startswith("/proxy/v1beta/models/gemini-embedding-2:batchEmbedContents?")


def test_a_poisoned_text_fails_alone(embedder, fake):
    fake.poison = {"poison"}
    with pytest.raises(EmbeddingFailed) as caught:
        embedder.embed_documents(["one", "two", "a poison", "three"])
    assert [isinstance(outcome, np.ndarray) for outcome in caught.value.outcomes] == [True, True, False, True]


def test_a_wrong_key_is_said_once_and_not_shown(access, fake, sdk):
    wrong = "AIzaSyWRONG-0123456789"
    with pytest.raises(EmbedderUnavailable, match="refuses the API key from a test") as caught:
        google_generativeai.load("", access(api_key=wrong)).embed_documents(["one", "two"])
    assert wrong not in "".join(traceback.format_exception(caught.value))
    assert len(fake.requests) == 1


def test_without_a_key_nothing_is_asked(access, fake):
    with pytest.raises(EmbedderUnavailable, match="GEMINI_API_KEY"):
        google_generativeai.load("", access(api_key=None)).embed_documents(["one"])
    assert not fake.requests


def test_vertex_is_refused_with_the_embedder_that_can(access, fake):
    embedder = google_generativeai.load("", access(project="a-project"))
    for ask in (embedder.require_key, lambda: embedder.embed_documents(["one"])):
        with pytest.raises(EmbedderUnavailable, match="Vertex AI: use the embedder gemini"):
            ask()
    assert not fake.requests


@pytest.mark.parametrize("missing", ["google.generativeai", "google"])
def test_a_missing_package_is_named_with_its_remedy(missing):
    found = run(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from datasette_vec_gemini.access import Access\n"
        "from datasette_vec_gemini.embedders.google_generativeai import load\n"
        "try: load('', Access(api_key='k')).prepare()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    assert found.stdout.startswith("EmbedderUnavailable google-generativeai needs google")
    assert INSTALL in found.stdout


def test_the_sdk_is_imported_by_the_first_text_and_its_warning_becomes_one_line(fake, sdk):
    found = run(
        "import logging, sys, threading\n"
        "logging.basicConfig(format='%(levelname)s %(name)s %(message)s', level=logging.DEBUG)\n"
        "from datasette_vec_gemini.access import Access\n"
        "from datasette_vec_gemini.embedders.google_generativeai import load\n"
        "loaded = [load(rest, Access(api_key=sys.argv[2], base_url=sys.argv[1])) for rest in ('', '@256')]\n"
        "assert not {'google.generativeai', 'google.ai', 'grpc', 'requests'} & set(sys.modules)\n"
        "ask = lambda n: loaded[n % 2].embed_documents([f'text {n}'])\n"
        "threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n",
        fake.url,
        KEY,
    )
    assert len(fake.embedded) == 8
    assert KEY not in found.stderr
    (line,) = (line for line in found.stderr.splitlines() if not line.startswith("DEBUG"))
    assert line.startswith("WARNING datasette_vec_gemini google-generativeai is past its end of life")
    assert "use the embedder gemini" in line
