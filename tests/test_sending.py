"""Laws of requests that can be given up: whoever waits is let go, and what was sent may be billed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from datasette_vec_gemini.access import Access
from datasette_vec_gemini.embedders.remote import RemoteEmbedder
from datasette_vec_gemini.embedders.sending import Sending
from datasette_vec_gemini.embedders.service import Model, Reply, Transient
from datasette_vec_gemini.errors import EmbeddingFailed, ServiceUnavailable

REPLY = Reply(vectors=[[1.0]], tokens=3)
FOREVER = threading.Event()
HANGING = threading.Event()


def hang() -> Reply:
    HANGING.set()
    FOREVER.wait()
    raise AssertionError


def fail() -> Reply:
    raise EmbeddingFailed("this text is refused")


@pytest.fixture(autouse=True)
def released():
    yield
    FOREVER.set()
    for thread in threading.enumerate():
        if thread.name == "vec-request":
            thread.join(5)
    FOREVER.clear()
    HANGING.clear()


def test_an_answer_comes_through_and_so_does_an_error():
    sending = Sending()
    assert sending.send(lambda: REPLY, seconds=5) is REPLY
    with pytest.raises(EmbeddingFailed, match="this text"):
        sending.send(fail, seconds=5)


def test_after_its_time_a_request_is_left_to_itself_and_may_be_billed():
    began = time.monotonic()
    with pytest.raises(Transient, match="in time") as caught:
        Sending().send(hang, seconds=0.1)
    assert caught.value.may_be_billed
    assert time.monotonic() - began < 2


def test_who_gives_up_is_let_go_at_once_and_sends_nothing_more():
    sending = Sending()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sending.send, hang, seconds=60)
        assert HANGING.wait(5)
        sending.give_up()
        error = waiting.exception(5)
    assert isinstance(error, Transient)
    assert error.may_be_billed
    with pytest.raises(Transient) as caught:
        sending.send(lambda: REPLY, seconds=60)
    assert not caught.value.may_be_billed


class Hanging:
    """A service that takes "hang" for an order, and an interruption for an answer to "stop"."""

    def require_key(self) -> None:
        pass

    def prepare(self) -> None:
        pass

    def check(self) -> None:
        pass

    def embed(self, texts, *, task, title, dimensions, timeout_seconds) -> Reply:
        if "stop" in texts:
            raise KeyboardInterrupt
        return hang() if "hang" in texts else Reply(vectors=[[0.6, 0.8]] * len(texts), tokens=7)


@pytest.fixture
def embedder(request):
    model = Model(name="two", max_tokens=100, max_dimensions=2, scheme="task_type")
    access = Access(api_key=request.node.name, texts_per_request=1)
    made = RemoteEmbedder(Hanging(), model, name="two", dimensions=2, access=access)
    return made.charged_to("", bulk=True)


def test_an_embedder_that_is_abandoned_keeps_what_was_answered_and_counts_what_was_sent(embedder):
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(embedder.embed_documents, ["one", "hang", "never sent"])
        assert HANGING.wait(5)
        embedder.abandon()
        error = waiting.exception(5)
    assert isinstance(error, ServiceUnavailable)
    assert [outcome is not None for outcome in error.outcomes] == [True, False, False]
    assert (embedder.budget.spent.requests, embedder.budget.spent.texts) == (2, 2)


def test_an_interruption_ends_the_waiting_but_what_was_sent_counts(embedder):
    with pytest.raises(KeyboardInterrupt):
        embedder.embed_documents(["stop"])
    assert embedder.budget.spent.requests == 1
