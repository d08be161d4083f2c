"""The commands: what they refuse before anything is served, and what they print for clients."""

import json
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from datasette_vec_gemini import connect, create_index, create_memory
from datasette_vec_gemini.cli import vec
from mcp_server.cli import mcp


def run(*arguments, command=vec):
    return CliRunner().invoke(command, [str(each) for each in arguments])


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["--http", "0.0.0.0:1234"], "can be reached by others", 1),
        (["--http", "[::]:1234", "--token-file", "TOKEN"], "can be reached by others", 1),
        (["--http", "0.0.0.0:1234", "--allowed-host", "e.org"], "can be reached by others", 1),
        (["--http", "127.0.0.1:1234", "--token-file", "SHORT"], "must have 16 or more", 1),
        (["--http", "127.0.0.1:1234", "--token-file", "EMPTY"], "token file is empty", 2),
        (["--http", "127.0.0.1:1234", "--token-file", "BYTES"], "token file cannot be read as text", 2),
        (["--http", "127.0.0.1:TAKEN"], "cannot listen on 127.0.0.1:", 1),
        (["--http", "nonsense"], "write HOST:PORT", 2),
        (["--index", "nope"], "no index 'nope'; it has documents", 2),
        (["--embedder", "local"], "has the model hashing@64", 2),
        (["--colour"], "No such option", 2),
    ],
)
def test_what_cannot_be_served_is_refused(path, tmp_path, options, words, code):
    conn = connect(path, create=True)
    create_memory(conn, embedder="hashing@64")
    conn.close()
    files = {"TOKEN": b"x" * 16, "SHORT": b"x" * 15, "EMPTY": b" \n", "BYTES": b"\xff\xfe" * 10}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = [str(tmp_path / each) if each in files else each.replace("TAKEN", port) for each in options]
        result = run("mcp", path, *given)
    assert (result.exit_code, words in result.stderr) == (code, True), result.output
    assert result.stdout == ""


def test_a_file_that_is_no_database_or_not_there_is_said(tmp_path):
    wrong = tmp_path / "text.db"
    wrong.write_text("this is text, and long enough to be looked at by SQLite, which wants a header")
    assert "not a SQLite database" in run("mcp", wrong).stderr
    assert "there is no file 'none.db'" in run("mcp", tmp_path / "none.db", "--read-only").stderr
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("db", "options", "words"),
    [
        ("new.db", ["--embedder", "nonsense"], "there is no embedder 'nonsense'"),
        ("new.db", ["--index", "notes"], "there is no file 'new.db'"),
        ("no/such/directory/new.db", [], "cannot be opened"),
        (":memory:", [], "name a file"),
        ("--http", [], "Missing argument 'DB'"),
    ],
)
def test_a_start_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, db, options, words):
    monkeypatch.chdir(tmp_path)
    result = run("mcp", db, *options)
    assert (result.exit_code != 0, words in result.stderr) == (True, True), result.output
    assert list(tmp_path.iterdir()) == []


def test_what_follows_http_is_the_file_where_no_other_is(path):
    wrong = path.with_name("text.db")
    wrong.write_text("this is text, and long enough to be looked at by SQLite, which wants a header")
    assert "not a SQLite database" in run("mcp", "--http", wrong).stderr
    assert "not a SQLite database" in run("mcp", "--http", "1234", wrong).stderr
    assert "'nonsense'; write HOST:PORT" in run("mcp", "--http", "nonsense", path).stderr


def test_a_file_with_tables_is_left_as_it_is(path):
    conn = connect(path, create=True)
    conn.execute("create table t (id integer primary key, body text)")
    conn.commit()
    conn.close()
    before = path.read_bytes()
    result = subprocess.run(
        [sys.executable, "-m", "mcp_server", path], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert result.stdout == b""
    assert path.read_bytes() == before


def test_an_interrupted_beginning_is_finished(path):
    from mcp_server.file import make_memory

    conn = connect(path, create=True)
    create_memory(conn, embedder="hashing@64")
    (table,) = conn.execute("select sql from sqlite_master where name = 'documents'").fetchone()
    conn.close()
    other = path.with_name("other.db")
    conn = connect(other, create=True)
    conn.execute(table)
    conn.close()
    assert make_memory(other, embedder="hashing@64")
    assert not make_memory(other, embedder="hashing@64")


@pytest.mark.parametrize("client", ["claude-desktop", "cursor", "vscode"])
def test_a_block_for_a_client_starts_the_server(path, client):
    conn = connect(path, create=True)
    conn.execute("create table docs (id integer primary key, body text)")
    create_index(conn, "docs", table="docs", columns=["body"], embedder="hashing@64")
    conn.close()
    result = run("mcp", "config", path, "--client", client, "--read-only", "--index", "docs")
    block = json.loads(result.stdout)
    ((name, server),) = block["servers" if client == "vscode" else "mcpServers"].items()
    assert name == "test"
    assert server["command"] == sys.executable
    assert server["args"] == ["-P", "-m", "mcp_server", str(path), "--read-only", "--index", "docs"]


def test_what_a_client_starts_is_ours_in_whatever_directory(path, tmp_path):
    (tmp_path / "mcp_server").mkdir()
    (tmp_path / "mcp_server" / "__init__.py").touch()
    (tmp_path / "mcp_server" / "__main__.py").write_text("print('another')")
    ((_, server),) = json.loads(run("mcp", "config", path, "--client", "cursor").stdout)["mcpServers"].items()
    command = [server["command"], *server["args"]]
    result = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert result.stdout == ""


def test_the_line_for_claude_code_has_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("config", "my notes.db", "--client", "claude-code", command=mcp)
    expected = f"claude mcp add my-notes -- {sys.executable} -P -m mcp_server '{tmp_path}/my notes.db'\n"
    assert result.stdout == expected


def test_the_command_line_does_not_load_the_sdk():
    heavy = {"mcp", "pydantic", "starlette"}
    program = f"import sys; from datasette_vec_gemini.cli import vec; print([n for n in {heavy} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
