"""The sentence that is nearest in meaning is marked in a snippet, by a model that costs nothing, or nothing is."""

import asyncio
import re
import threading
import time

import pytest
from fake_gemini import KEY, FakeGemini
from hypothesis import given
from hypothesis import strategies as st

from datasette_vec_gemini import Access, Query, connect, create_index, find_index, load_embedder, sync
from datasette_vec_gemini.browsing import browse
from datasette_vec_gemini.plugin import finding
from datasette_vec_gemini.plugin.sentences import Sentences, sentences
from datasette_vec_gemini.searching import embed

OTHERS = ["birds", "clouds", "rivers", "lamps", "chairs", "stones", "boats", "trains", "apples", "pipes"]
SCRIPT = """
create table docs (id integer primary key, body text);
insert into docs values (1, 'The gardener waters roses. Parse a date with strptime.')
""" + "".join(f", ({n}, '{word} are somewhere else {n}')" for n, word in enumerate(OTHERS, 2))
NOBODY = Access()
NEAREST = "Parse a date with strptime."
MARKED = r'<u class="vec-nearest">(.*?)</u>'


@given(st.text(alphabet="ab .!?…。é\n", max_size=200))
def test_sentences_hold_every_character_but_the_space_between_them(text) -> None:
    spans = sentences(text)
    assert all(start <= end for start, end in spans)
    ends = [0, *(end for _, end in spans)]
    between = [text[end:start] for end, (start, _) in zip(ends, spans, strict=False)]
    assert "".join(between).strip() == ""
    assert ends[-1] == len(text) or not text[ends[-1] :].strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Read the whole file first. Then close it as it was.",
            ["Read the whole file first.", "Then close it as it was."],
        ),
        (
            "Use a format, e.g. the one of ISO 8601, for a date.",
            ["Use a format, e.g. the one of ISO 8601, for a date."],
        ),
        ("A long sentence stands at the beginning. Short.", ["A long sentence stands at the beginning. Short."]),
        ("", [""]),
    ],
)
def test_what_is_short_is_no_sentence_of_its_own(text, expected) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


async def marked(datasette, path: str) -> str:
    """The page, asked for again until the model has had its time."""
    for _ in range(50):
        page = (await datasette.client.get(path)).text
        if re.search(MARKED, page):
            return page
        await asyncio.sleep(0.05)
    return page


@pytest.mark.asyncio
async def test_the_page_marks_it_beside_the_words_and_its_twins_do_not(site, tmp_path, build) -> None:
    datasette = site(build(tmp_path / "library.db", SCRIPT, columns=["body"]))
    page = await marked(datasette, "/library/-/vec/docs?q=parse+a+date")
    (found,) = re.findall(MARKED, page)[1:]  # after that of the legend
    assert re.sub("</?mark>", "", found) == NEAREST
    assert "<mark>Parse</mark>" in found
    assert "the sentence nearest in meaning" in page
    everywhere = await marked(datasette, "/-/vec?q=parse+a+date")
    assert re.sub("</?mark>", "", re.findall(MARKED, everywhere)[0]) == NEAREST
    for form in ("json", "csv"):
        assert "<u" not in (await datasette.client.get(f"/library/-/vec/docs.{form}?q=parse+a+date")).text
    assert not re.search(MARKED, (await datasette.client.get("/library/-/vec/docs?q=parse+a+date&mode=keyword")).text)


@pytest.mark.asyncio
async def test_a_search_of_several_indexes_does_not_take_itself_for_a_crowd(site, tmp_path, build, monkeypatch) -> None:
    scripts = [SCRIPT.replace("with strptime.", f"with strptime, part {n}.") for n in range(4)]
    files = [build(tmp_path / f"library{n}.db", script, columns=["body"]) for n, script in enumerate(scripts)]
    datasette = site(*files)

    def slow(*arguments, **options):
        time.sleep(0.03)
        return browse(*arguments, **options)

    monkeypatch.setattr(finding, "browse", slow)
    for _ in range(50):
        page = (await datasette.client.get("/-/vec?q=parse+a+date")).text
        found = [re.search(MARKED, group) is not None for group in page.split("<article>")[1:] if "gardener" in group]
        if all(found):
            break
        await asyncio.sleep(0.05)
    assert found == [True] * 4


async def told(own, index, query, found, access=NOBODY):
    """What is marked, asked for again until the model has had its time."""
    for _ in range(600):
        if spans := await own.nearest(index, query, found, access):
            return spans
        await asyncio.sleep(0.05)
    return {}


def asked(file, model=None):
    with connect(file) as conn:
        index = find_index(conn, "docs")
        query = embed(index, Query("parse a date"), embedder=model)
        return index, query, browse(conn, index, query)


def test_a_page_waits_for_a_slow_model_no_longer_than_it_may_and_one_at_a_time(tmp_path, build) -> None:
    index, query, found = asked(build(tmp_path / "library.db", SCRIPT, columns=["body"]))
    free, begun, calls = threading.Event(), threading.Event(), []

    class Slow:
        fingerprint = index.fingerprint
        name = "slow"

        def speaks(self, _text):
            return True

        def embed_documents(self, texts):
            calls.append(len(texts))
            begun.set()
            free.wait(20)
            return load_embedder("hashing@64").embed_documents(texts)

    own = Sentences(load=lambda *_: Slow())

    async def ask_twice():
        assert await own.nearest(index, query, found, Access()) == {}
        await asyncio.to_thread(begun.wait, 20)
        assert await own.nearest(index, query, found, Access()) == {}
        assert len(calls) == 1  # the second page does without, as the first is not done
        free.set()
        return await told(own, index, query, found)

    ((number, (start, end)),) = asyncio.run(ask_twice()).items()
    assert found.hits[number].snippet[start:end] == NEAREST
    assert calls == [2]


def test_on_a_busy_site_only_what_is_known_is_marked(tmp_path, build) -> None:
    index, query, found = asked(build(tmp_path / "library.db", SCRIPT, columns=["body"]))
    own = Sentences()

    async def ask() -> None:
        for _ in range(5):
            assert await own.nearest(index, query, found, Access(), is_busy=True) == {}
            await asyncio.sleep(0.05)
        spans = await told(own, index, query, found)
        assert spans
        assert await own.nearest(index, query, found, Access(), is_busy=True) == spans

    asyncio.run(ask())


def test_a_model_that_fails_marks_nothing(tmp_path, build) -> None:
    index, query, found = asked(build(tmp_path / "library.db", SCRIPT, columns=["body"]))

    class Broken:
        fingerprint = index.fingerprint

        def speaks(self, _text):
            return True

        def embed_documents(self, texts):
            raise ZeroDivisionError

    own = Sentences(load=lambda *_: Broken())
    for _ in range(2):
        assert asyncio.run(own.nearest(index, query, found, Access())) == {}


def test_what_is_kept_has_an_end(tmp_path, build) -> None:
    index, query, found = asked(build(tmp_path / "library.db", SCRIPT, columns=["body"]))
    both = 2  # the sentences of the only text that has several
    assert asyncio.run(told(Sentences(kept=both), index, query, found)) != {}
    own = Sentences(kept=both - 1)
    for _ in range(10):
        assert asyncio.run(own.nearest(index, query, found, NOBODY)) == {}


@pytest.mark.slow
def test_on_an_index_of_a_paid_model_the_local_one_does_it_and_nobody_pays(
    tmp_path, monkeypatch, one_certificate
) -> None:
    with FakeGemini() as fake:
        access = Access(api_key=KEY, base_url=fake.url)
        model = load_embedder("gemini", access)
        with connect(tmp_path / "library.db", create=True) as conn:
            conn.executescript(SCRIPT)
            sync(conn, create_index(conn, "docs", table="docs", columns=["body"], embedder=model), embedder=model)
        index, query, found = asked(tmp_path / "library.db", model)
        before, own = len(fake.requests), Sentences()

        ((number, (start, end)),) = asyncio.run(told(own, index, query, found, access)).items()
        assert found.hits[number].snippet[start:end] == NEAREST
        assert len(fake.requests) == before
