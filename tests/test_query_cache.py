"""Laws of the query cache: equal questions at once cost one call, nobody waits too long, no error is remembered."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from fake_gemini import KEY, FakeGemini

from datasette_vec_gemini import Access, load_embedder
from datasette_vec_gemini.embedders import cached
from datasette_vec_gemini.embedders.cached import MOST_AT_ONCE, QueryCache
from datasette_vec_gemini.errors import EmbedderUnavailable, EmbeddingFailed, ServiceUnavailable

VECTOR = np.array([1.0, 0.0], np.float32)


class Model:
    """Answers when it is told to, and counts how often it was asked."""

    def __init__(self, answer=VECTOR):
        self.calls, self.answer, self.may = 0, answer, threading.Event()

    def __call__(self):
        self.calls += 1
        self.may.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer.copy()


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def together(cache, model, count, *, question="q", timeout_seconds=5.0):
    """So many threads that ask the same; the answer comes when all of them wait for it."""
    waiting = []

    class Awaited(Future):
        def result(self, timeout=None):
            waiting.append(timeout)
            return super().result(timeout)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(count) as pool:
        patch.setattr(cached, "Future", Awaited)
        asked = [pool.submit(cache.answer, question, model, timeout_seconds=timeout_seconds) for _ in range(count)]
        until(lambda: len(waiting) == count)
        model.may.set()
        return [future.exception() or future.result() for future in asked]


def test_twenty_equal_questions_at_once_cost_one_call():
    with FakeGemini(latency_seconds=0.3) as fake:
        model = load_embedder("gemini", Access(api_key=KEY, base_url=fake.url))
        model.prepare()
        barrier = threading.Barrier(20)

        def ask():
            barrier.wait()
            return model.embed_query("what is this")

        with ThreadPoolExecutor(20) as pool:
            vectors = [future.result() for future in [pool.submit(ask) for _ in range(20)]]
        assert len(fake.requests) == 1
        assert {vector.tobytes() for vector in vectors} == {vectors[0].tobytes()}
        assert model.embed_query("what is this") is model.known_query("what is this")
        assert len(fake.requests) == 1
        model.embed_query("what is this", task="CLUSTERING")
        assert len(fake.requests) == 2


def test_an_answer_is_computed_once_and_kept():
    cache, model = QueryCache(), Model()
    assert all(answer is not None for answer in together(cache, model, 20))
    assert (model.calls, cache.busy) == (1, False)
    assert cache.answer("q", pytest.fail, timeout_seconds=0).tolist() == [1.0, 0.0]
    assert cache.find("q").tolist() == [1.0, 0.0]
    assert cache.find("other") is None


def test_a_kept_answer_cannot_be_changed_by_whoever_has_it():
    cache, model = QueryCache(), Model()
    model.may.set()
    with pytest.raises(ValueError, match="read-only"):
        cache.answer("q", model, timeout_seconds=5)[0] = 7


def test_an_error_reaches_all_who_wait_and_is_not_kept():
    cache, model = QueryCache(), Model(EmbeddingFailed("refused"))
    assert {str(error) for error in together(cache, model, 10)} == {"refused"}
    assert model.calls == 1
    until(lambda: not cache.busy)
    model.answer = VECTOR
    assert cache.answer("q", model, timeout_seconds=5).tolist() == [1.0, 0.0]
    assert model.calls == 2


def test_who_waits_too_long_is_told_and_the_late_answer_is_kept():
    cache, model = QueryCache(), Model()
    with pytest.raises(ServiceUnavailable, match=r"did not answer within 0\.05 s"):
        cache.answer("q", model, timeout_seconds=0.05)
    assert cache.busy
    with pytest.raises(ServiceUnavailable):
        cache.answer("q", model, timeout_seconds=0.05)
    model.may.set()
    until(lambda: cache.find("q") is not None)
    assert (model.calls, cache.busy) == (1, False)


def test_it_is_bounded_and_forgets_what_was_used_longest_ago():
    cache, model = QueryCache(size=3), Model()
    model.may.set()
    for question in "abc":
        cache.answer(question, model, timeout_seconds=5)
    cache.find("a")
    cache.answer("b", model, timeout_seconds=5)
    cache.answer("d", model, timeout_seconds=5)
    assert [question for question in "abcd" if cache.find(question) is not None] == ["a", "b", "d"]


def test_only_so_many_questions_are_asked_at_once():
    cache, model = QueryCache(), Model()
    for number in range(MOST_AT_ONCE):
        with pytest.raises(ServiceUnavailable):
            cache.answer(number, model, timeout_seconds=0.001)
    with pytest.raises(ServiceUnavailable, match="are being embedded"):
        cache.answer("one more", model, timeout_seconds=5)
    model.may.set()
    until(lambda: not cache.busy)
    assert cache.answer("one more", model, timeout_seconds=5).tolist() == [1.0, 0.0]


def test_a_question_that_no_thread_could_take_up_is_not_waited_for_ever(monkeypatch):
    cache, model = QueryCache(), Model()
    model.may.set()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _no_thread)
        with pytest.raises(RuntimeError):
            cache.answer("q", model, timeout_seconds=0.1)
    assert not cache.busy
    assert cache.answer("q", model, timeout_seconds=5).tolist() == [1.0, 0.0]


def _no_thread(self):
    raise RuntimeError("can't start new thread")


def test_without_a_key_nothing_is_asked_and_nothing_stays_busy():
    model = load_embedder("gemini", Access())
    with pytest.raises(EmbedderUnavailable, match="local"):
        model.embed_query("q")
    assert not model.busy
