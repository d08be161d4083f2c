"""sqlite-utils gets embed_gemini() through its plugin hook, and nothing else changes for it."""

import gc
import json
import os
import subprocess
import sys
import weakref

import pytest
from fake_gemini import KEY, FakeGemini
from sqlite_utils import Database


@pytest.fixture
def fake():
    with FakeGemini() as fake:
        yield fake


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GOOGLE_", "GEMINI_", "DATASETTE_")) or name == "DATASETTE_VEC_STATE_DIR"
    }
    command = [sys.executable, "-m", "sqlite_utils", *arguments]
    return subprocess.run(command, env=plain | variables, capture_output=True, text=True, check=False)


def test_a_query_embeds(fake, path):
    Database(path).close()
    done = run(
        "query",
        str(path),
        "select hex(embed_gemini('hello')) as v",
        GEMINI_API_KEY=KEY,
        GOOGLE_GEMINI_BASE_URL=fake.url,
    )
    assert done.returncode == 0, done.stderr
    assert len(bytes.fromhex(json.loads(done.stdout)[0]["v"])) == 3072
    assert len(fake.requests) == 1


def test_without_a_key_the_log_says_what_to_do(path):
    Database(path).close()
    done = run("query", str(path), "select embed_gemini('hello')")
    assert done.returncode == 1
    assert "set GEMINI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_commands_work_as_before_whatever_the_environment_says(path):
    wrong = {"DATASETTE_VEC_SQL_EMBEDDING": "perhaps", "DATASETTE_VEC_DAILY_USD": "many"}
    assert run("create-table", str(path), "t", "id", "integer", "--pk", "id", **wrong).returncode == 0
    done = run("tables", str(path), **wrong)
    assert (done.returncode, json.loads(done.stdout)) == (0, [{"table": "t"}])


def test_neither_google_s_sdk_nor_numpy_is_loaded_before_a_text_is_embedded():
    code = (
        "import sys; from sqlite_utils import Database; Database(memory=True).execute('select 1');"
        "print([name for name in ('google.genai', 'httpx2', 'onnxruntime', 'tokenizers') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_database_is_not_kept_alive(path):
    db = Database(path)
    seen = weakref.ref(db)
    db.execute("select vec_version()")
    db.close()
    del db
    gc.collect()
    assert seen() is None
