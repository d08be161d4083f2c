"""Laws of the gate: known texts pass, new ones one at a time, so many in any minute, for those who may."""

import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_gemini import KEY, FakeGemini
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_vec_gemini import Access, load_embedder
from datasette_vec_gemini.errors import EmbeddingFailed, GateClosed, ServiceUnavailable
from datasette_vec_gemini.gate import ERRORS_KEPT, Gate


class Model:
    """Only what the gate asks of an embedder; a text's vector is its length."""

    name = "counted"

    def __init__(self):
        self.known, self.asked, self.busy, self.error = {}, [], False, None
        self.may = threading.Event()
        self.may.set()

    def known_query(self, text, *, task):
        return self.known.get((task, text))

    def is_asked(self, text, *, task):
        return False

    def embed_query(self, text, *, task, timeout_seconds):
        self.asked.append(text)
        assert self.may.wait(10)
        if self.error:
            raise self.error
        self.known[task, text] = len(text)
        return len(text)


@pytest.fixture
def model():
    return Model()


def ask(gate, model, text, **options):
    return gate.vector(model, text, task="T", timeout_seconds=1.0, **options)


def until(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_off_lets_nothing_through(model):
    gate = Gate(mode="off")
    model.known["T", "old"] = 3
    for text in ("old", "new"):
        with pytest.raises(GateClosed, match="off"):
            ask(gate, model, text, allowed=True)
    assert model.asked == []


def test_cached_lets_only_known_texts_through(model):
    gate = Gate(mode="cached")
    model.known["T", "old"] = 3
    assert ask(gate, model, "old") == 3
    with pytest.raises(GateClosed, match="cached"):
        ask(gate, model, "new", allowed=True)
    assert model.asked == []


def test_auto_lets_those_through_who_may_and_everybody_with_a_known_text(model):
    may = []
    gate = Gate(may_embed=lambda: bool(may))
    with pytest.raises(GateClosed, match="vec-embed"):
        ask(gate, model, "new")
    may.append(True)
    assert ask(gate, model, "new") == 3
    may.clear()
    assert ask(gate, model, "new") == 3
    with pytest.raises(GateClosed):
        ask(gate, model, "newer")
    assert ask(gate, model, "newer", allowed=True) == 5
    may.append(True)
    with pytest.raises(GateClosed):
        ask(gate, model, "newest", allowed=False)
    assert model.asked == ["new", "newer"]


def test_on_lets_everybody_through(model):
    assert ask(Gate(mode="on", may_embed=lambda: False), model, "new", allowed=False) == 3


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5), st.lists(st.floats(0, 90), max_size=40))
def test_in_no_minute_pass_more_new_texts_than_allowed(limit, pauses):
    now, passed, refused = [0.0], [], []
    gate, model = Gate(mode="on", texts_per_minute=limit, clock=lambda: now[0]), Model()
    for number, pause in enumerate(pauses):
        now[0] += pause
        try:
            ask(gate, model, f"text {number}")
        except GateClosed:
            refused.append(now[0])
            # It was not refused without reason.
            assert sum(when > now[0] - 60 for when in passed) >= limit
        else:
            passed.append(now[0])
    assert all(sum(start <= when < start + 60 for when in passed) <= limit for start in passed)
    assert len(model.asked) == len(passed)


def test_those_who_may_not_use_up_nothing(model):
    gate = Gate(texts_per_minute=1, may_embed=lambda: False)
    for _ in range(5):
        with pytest.raises(GateClosed, match="sign in"):
            ask(gate, model, "new")
    assert ask(gate, model, "new", allowed=True) == 3


def test_a_second_new_text_while_one_is_under_way_fails_at_once(model):
    gate = Gate(mode="on")
    model.may.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, gate, model, "first")
        until(lambda: model.asked)
        started = time.monotonic()
        with pytest.raises(GateClosed, match="another new text"):
            ask(gate, model, "second")
        assert time.monotonic() - started < 0.5
        model.known["T", "known"] = 5
        assert ask(gate, model, "known") == 5
        model.may.set()
        assert first.result() == 5
    assert ask(gate, model, "second") == 6


def test_the_same_text_waits_for_the_one_under_way(model):
    gate = Gate(mode="on", texts_per_minute=1)
    model.may.clear()
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(ask, gate, model, "same") for _ in range(10)]
        until(lambda: model.asked)
        time.sleep(0.02)
        model.may.set()
        assert [future.result() for future in asked] == [4] * 10
    assert model.asked == ["same"]


def test_who_queues_is_not_refused_because_of_another(model):
    gate = Gate(mode="on", queueing=True)
    model.may.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, gate, model, text) for text in ("one", "other")]
        until(lambda: len(model.asked) == 2)
        model.may.set()
        assert sorted(future.result() for future in asked) == [3, 5]


def test_an_error_opens_the_gate_again(model):
    gate = Gate(mode="on")
    model.error = ServiceUnavailable("not to be had")
    with pytest.raises(ServiceUnavailable):
        ask(gate, model, "new")
    model.error = None
    assert ask(gate, model, "newer") == 5
    with pytest.raises(GateClosed):
        ask(Gate(mode="on", texts_per_minute=0), model, "newest")


def test_the_last_errors_are_kept_with_their_time_and_each_is_logged_once(caplog):
    gate = Gate()
    for n in range(ERRORS_KEPT + 5):
        gate.note(EmbeddingFailed(f"reason {n}"))
    gate.note(EmbeddingFailed(f"reason {ERRORS_KEPT}"))
    assert [message for _, message in gate.errors][-2:] == [f"reason {ERRORS_KEPT + 4}", f"reason {ERRORS_KEPT}"]
    assert len(gate.errors) == ERRORS_KEPT
    assert all(when.endswith("+00:00") for when, _ in gate.errors)
    assert len(caplog.records) == ERRORS_KEPT + 5
    shared: deque = deque(maxlen=3)
    Gate(errors=shared).note(EmbeddingFailed("x"))
    assert len(shared) == 1


def test_a_late_answer_is_there_for_the_next_time_and_meanwhile_nothing_new_is_asked():
    with FakeGemini(latency_seconds=0.4) as fake:
        model = load_embedder("gemini", Access(api_key=KEY, base_url=fake.url))
        model.prepare()
        gate = Gate(mode="on")
        with pytest.raises(ServiceUnavailable):
            gate.vector(model, "slow", task="RETRIEVAL_QUERY", timeout_seconds=0.1)
        with pytest.raises(GateClosed):
            gate.vector(model, "other", task="RETRIEVAL_QUERY", timeout_seconds=0.1)
        assert gate.vector(model, "slow", task="RETRIEVAL_QUERY", timeout_seconds=1).shape == (768,)
        until(lambda: not model.busy)
        assert gate.vector(model, "slow", task="RETRIEVAL_QUERY", timeout_seconds=0.1).shape == (768,)
        assert len(fake.requests) == 1
