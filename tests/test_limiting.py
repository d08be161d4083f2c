"""Laws of the limiter: never more in any window than allowed, whenever within a request the service counts it."""

import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_vec_gemini.errors import ServiceUnavailable
from datasette_vec_gemini.limiting import WINDOW_SECONDS, Limiter, Permit

TEXTS, TOKENS = 100, 1_000


@dataclass
class Sent:
    """A request that was let through; the service counts it at some moment from `begun` to `ended`."""

    permit: Permit
    texts: int
    tokens: int
    begun: float
    ends: float
    counted: bool = True
    ended: float | None = None


@dataclass
class World:
    """A clock that only waiting moves on, and requests that end by it."""

    texts: int = TEXTS
    tokens: int = TOKENS
    now: float = 1_000.0
    sent: list[Sent] = field(default_factory=list)

    def __post_init__(self):
        self.limiter = Limiter(texts=self.texts, tokens=self.tokens, clock=lambda: self.now, wait=self.wait)

    def wait(self, condition, seconds):
        """A change wakes whoever waits: here the end of the request that ends first."""
        assert seconds > 0
        under_way = [request for request in self.sent if request.ended is None]
        until = min([self.now + seconds, *(max(self.now, request.ends) for request in under_way)])
        self.now = until
        self.end_what_is_due()

    def end_what_is_due(self):
        for request in self.sent:
            if request.ended is None and request.ends <= self.now:
                self.finish(request)

    def finish(self, request):
        request.ended = self.now
        self.limiter.finish(request.permit, counted=request.counted, tokens=request.tokens)

    def advance(self, seconds):
        until = self.now + seconds
        while due := [r.ends for r in self.sent if r.ended is None and r.ends <= until]:
            self.now = max(self.now, min(due))
            self.end_what_is_due()
        self.now = until

    def send(self, texts, tokens, lasts, *, counted=True, patience=1e9):
        permit = self.limiter.acquire(texts=texts, tokens=tokens, until=self.now + patience)
        self.sent.append(Sent(permit, texts, tokens, self.now, self.now + lasts, counted))
        return self.sent[-1]

    def worst_windows(self, *, since=float("-inf")):
        """The most texts and tokens that may be counted in one window, over all windows: each begins at an end."""
        counted = [r for r in self.sent if r.counted and r.begun >= since]
        for first in counted:
            start = self.now if first.ended is None else first.ended
            within = [r for r in counted if r.begun < start + WINDOW_SECONDS and (r.ended is None or r.ended >= start)]
            yield sum(r.texts for r in within), sum(r.tokens for r in within)


durations = st.one_of(st.just(0.0), st.floats(0, 200), st.sampled_from([59.999, 60.0, 60.001]))
requests = st.tuples(
    st.just("send"), st.integers(1, TEXTS), st.integers(1, TOKENS), durations, st.booleans() | st.just(True)
)
idle = st.tuples(st.just("idle"), durations)


@settings(max_examples=500, deadline=None)
@given(st.lists(requests | idle, max_size=25))
def test_no_window_holds_more_than_is_allowed_whenever_the_service_counts(schedule):
    world = World()
    for what, *values in schedule:
        if what == "idle":
            world.advance(*values)
        else:
            texts, tokens, lasts, counted = values
            world.send(texts, tokens, lasts, counted=counted)
    world.advance(500)
    assert all(texts <= TEXTS and tokens <= TOKENS for texts, tokens in world.worst_windows())


@settings(max_examples=200, deadline=None)
@given(st.lists(requests | idle, max_size=15), st.floats(0, 100), st.lists(requests, min_size=1, max_size=10))
def test_after_a_pause_the_law_holds_for_all_that_is_sent_from_then_on(before, seconds, after):
    world = World()

    def play(schedule):
        for what, *values in schedule:
            if what == "idle":
                world.advance(*values)
            else:
                texts, tokens, lasts, counted = values
                world.send(texts, tokens, lasts, counted=counted)

    play(before)
    paused, sent = world.now, len(world.sent)
    world.limiter.pause(seconds)
    under_way = [request for request in world.sent if request.ended is None]
    play(after)
    world.advance(500)
    assert all(request.begun >= paused + seconds for request in world.sent[sent:])
    world.sent = [*under_way, *world.sent[sent:]]
    assert all(texts <= TEXTS and tokens <= TOKENS for texts, tokens in world.worst_windows())


@settings(max_examples=200, deadline=None)
@given(st.lists(requests | idle, max_size=15), st.integers(1, TEXTS), st.lists(requests | idle, max_size=15))
def test_a_limit_that_is_learnt_holds_from_then_on(before, learnt, after):
    world = World()

    def play(schedule):
        for what, *values in schedule:
            if what == "idle":
                world.advance(*values)
            else:
                texts, tokens, lasts, _ = values
                world.send(min(texts, world.limiter.texts), tokens, lasts)

    play(before)
    since = world.now
    world.limiter.pause(0.5, texts=learnt)
    world.advance(0.5)
    world.limiter.pause(0.5, texts=learnt + 50)  # a greater one is of another quota
    play(after)
    world.advance(500)
    assert world.limiter.texts == learnt
    assert all(texts <= learnt and tokens <= TOKENS for texts, tokens in world.worst_windows(since=since + 0.5))


@settings(max_examples=200, deadline=None)
@given(st.lists(requests | idle, max_size=15), st.integers(1, TEXTS), st.floats(0, 300))
def test_who_gives_up_does_so_in_time_and_has_taken_nothing(schedule, texts, patience):
    world = World()
    for what, *values in schedule:
        if what == "idle":
            world.advance(*values)
        else:
            world.send(values[0], values[1], values[2])
    before, count = world.now, len(world.sent)
    try:
        world.send(texts, 1, 0.0, patience=patience)
    except ServiceUnavailable:
        assert world.now <= before + patience
        assert len(world.sent) == count
        # Nothing was taken: what was sent before is all that counts.
        world.advance(1_000)
        assert world.send(TEXTS, TOKENS, 0.0, patience=0.0).begun == world.now
    else:
        assert world.now <= before + patience


@given(st.integers(1, 20), st.integers(1, 20))
def test_it_never_waits_longer_than_it_must(per_request, count):
    """Requests that take no time: as many as fit go at once, and the next a window after the first of them."""
    world, fit = World(), TEXTS // per_request
    begun = [world.send(per_request, 1, 0.0).begun - 1_000.0 for _ in range(count)]
    assert begun == pytest.approx([WINDOW_SECONDS * (n // fit) for n in range(count)], abs=0.1)


def test_more_than_fits_in_a_window_has_a_window_to_itself():
    world = World()
    assert world.send(10 * TEXTS, 1, 0.0).begun == 1_000.0
    assert world.send(1, 10 * TOKENS, 0.0).begun == pytest.approx(1_060.0, abs=0.01)
    assert world.send(1, 1, 0.0).begun == pytest.approx(1_120.0, abs=0.01)


def test_who_must_wait_too_long_is_told_at_once():
    world = World()
    world.send(TEXTS, 1, 0.0)
    with pytest.raises(ServiceUnavailable, match=r"the limit of 100 texts and 1,000 tokens a minute is reached"):
        world.send(1, 1, 0.0, patience=59)
    assert world.now == 1_000.0
    assert world.send(1, 1, 0.0, patience=61).begun == pytest.approx(1_060.0, abs=0.01)


def test_the_true_number_of_tokens_replaces_the_guess():
    world = World()
    request = world.send(1, TOKENS, 10.0)
    request.tokens = 100
    world.advance(10)
    assert world.send(1, TOKENS - 100, 0.0, patience=0.0).begun == 1_010.0


def test_a_refused_request_counts_no_more():
    world = World()
    world.send(TEXTS, TOKENS, 10.0, counted=False)
    world.advance(10)
    assert world.send(TEXTS, TOKENS, 0.0, patience=0.0).begun == 1_010.0


def test_a_request_under_way_counts_however_long_it_takes():
    world = World()
    world.send(TEXTS, 1, 500.0)
    assert world.send(1, 1, 0.0).begun == pytest.approx(1_560.0, abs=0.01)


def test_pauses_do_not_shorten_each_other():
    world = World()
    world.limiter.pause(50)
    world.limiter.pause(5)
    assert world.send(1, 1, 0.0).begun == pytest.approx(1_050.0)


def test_the_service_knows_its_windows_best():
    world = World()
    world.send(TEXTS, 1, 0.0)
    world.advance(0)
    world.limiter.pause(5)
    assert world.send(TEXTS, 1, 0.0).begun == pytest.approx(1_005.0)


def test_who_waits_is_stopped_at_once():
    limiter, stopped, raised = Limiter(texts=1, tokens=1), threading.Event(), []
    limiter.acquire(texts=1, tokens=1, until=time.monotonic())

    def wait():
        try:
            limiter.acquire(texts=1, tokens=1, until=time.monotonic() + 600, stop=stopped.is_set)
        except ServiceUnavailable as error:
            raised.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    stopped.set()
    limiter.wake()
    thread.join(5)
    assert raised == ["stopped before the next request"]


def test_threads_together_keep_the_limit_and_use_it():
    """Twelve threads on a clock a hundred times as fast as the real one."""
    speed, limit, per_request = 100.0, 60, 5
    lock, spans = threading.Lock(), []
    start = time.monotonic()

    def clock():
        return (time.monotonic() - start) * speed

    limiter = Limiter(
        texts=limit, tokens=10**6, clock=clock, wait=lambda condition, seconds: condition.wait(seconds / speed)
    )

    def work():
        while True:
            try:
                permit = limiter.acquire(texts=per_request, tokens=1, until=150.0)
            except ServiceUnavailable:
                return
            begun = clock()
            time.sleep(0.001)
            ended = clock()
            limiter.finish(permit)
            with lock:
                spans.append((begun, ended))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # `begun` is read a little after the permit, `ended` a little before it ends: what is counted in between is counted.
    for _, start_of_window in spans:
        within = [1 for begun, ended in spans if begun < start_of_window + 60 and ended >= start_of_window]
        assert per_request * sum(within) <= limit
    assert len(spans) >= 2 * limit // per_request
