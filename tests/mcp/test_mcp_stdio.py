"""Stdio, line by line: what a client may do to it, and what else the process does."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
from callers import INITIALIZE

from datasette_vec_gemini import NewDocument, add_documents, connect, create_memory

pytestmark = pytest.mark.slow

PROGRAM = ("-m", "mcp_server")


class Server(subprocess.Popen):
    """The server, to which an `initialize` has been sent; what it prints on stderr is kept."""

    def __init__(self, file, program=PROGRAM):
        pipe = subprocess.PIPE
        super().__init__([sys.executable, *program, str(file)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.send(json.dumps(INITIALIZE))

    def send(self, *lines: str) -> None:
        self.stdin.write("".join(f"{line}\n" for line in lines))
        self.stdin.flush()

    def receive(self) -> dict:
        return json.loads(self.stdout.readline())

    def end(self) -> tuple[int, str, str]:
        """Close its stdin; its exit code, and what else it says on stdout and stderr."""
        out, err = self.communicate(timeout=60)
        return self.returncode, out, err


@pytest.fixture
def file(path):
    """A memory with the hashing model, which is there at once."""
    conn = connect(path, create=True)
    index = create_memory(conn, embedder="hashing@64")
    add_documents(conn, index, [NewDocument(id="long", text="A sentence about fish. " * 800)])
    conn.close()
    return path


def call(number, tool, **arguments):
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call"}
    return json.dumps(message | {"params": {"name": tool, "arguments": arguments}})


def test_nothing_but_protocol_is_on_stdout_whatever_comes_in(file):
    with Server(file) as server:
        server.send(
            json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
            "this is not json",
            "",
            json.dumps({"jsonrpc": "2.0", "id": 2, "method": "no/such"}),
            # Half of a character, as an escape.
            call(3, "search_documents", query="\ud800 lone"),
            call(4, "get_document", key="\udfff"),
            call(5, "add_documents", documents=[{"text": "x", "title": "\ud83d"}]),
            json.dumps({"jsonrpc": "2.0", "id": 6, "method": "tools/list"}),
        )
        answers = {}
        while 6 not in answers:
            answer = server.receive()
            answers[answer.get("id")] = answer
        code, rest, _ = server.end()
    answers |= {answer.get("id"): answer for answer in map(json.loads, rest.splitlines())}
    assert code == 0
    assert len(answers[6]["result"]["tools"]) == 6
    assert "error" in answers[2]


def test_bytes_that_are_no_text_harm_nothing(file):
    with Server(file) as server:
        server.receive()
        server.stdin.buffer.write(b'{"jsonrpc": "2.0", "id": 2, "method": "\xff\xfe"}\n\xff\n')
        server.send(call(3, "list_indexes"))
        answers = {}
        while 3 not in answers:
            answer = server.receive()
            answers[answer.get("id")] = answer
        assert server.end()[0] == 0
    assert "error" in answers[2]
    assert answers[3]["result"]["structuredContent"]["indexes"][0]["name"] == "documents"


def test_a_client_may_ask_all_it_has_to_ask_before_it_reads_an_answer(file):
    numbers = range(2, 102)
    with Server(file) as server:
        server.send(*(call(number, "get_document", key="long", max_chars=20_000) for number in numbers))
        time.sleep(1)  # until the pipe, which holds 64 kB, has been full for a while
        answers = {answer["id"]: answer for answer in (server.receive() for _ in range(101))}
        assert server.end() == (0, "", "")
    assert set(answers) == {1, *numbers}
    assert {len(answers[number]["result"]["structuredContent"]["text"]) for number in numbers} == {18_400}


def test_a_message_may_be_long(file):
    documents = [{"text": f"{number} " + "word " * 1_800} for number in range(100)]
    with Server(file) as server:
        server.send(call(2, "add_documents", documents=documents))
        server.receive()
        answer = server.receive()
        assert server.end() == (0, "", "")
    assert {item["status"] for item in answer["result"]["structuredContent"]["items"]} == {"created"}


def test_a_line_that_is_longer_than_all_that_is_taken_harms_nothing(file):
    program = (
        "import runpy, mcp_server.stdio as s; s.LINE_BYTES = 1 << 20; runpy.run_module('mcp_server', None, '__main__')"
    )
    with Server(file, ("-c", program)) as server:
        server.receive()
        server.send("x" * (5 << 20), call(2, "list_indexes"))
        assert server.receive()["id"] == 2
        code, out, err = server.end()
    assert (code, out) == (0, "")
    assert "more than 1,048,576 bytes" in err


def test_a_request_for_more_than_the_tools_take_is_told_so(file):
    with Server(file) as server:
        server.receive()
        server.send(call(2, "add_documents", documents=[{"text": "👍" * 2_000_000}]))  # 24 MB, as escapes
        assert "1,000,000" in server.receive()["result"]["content"][0]["text"]
        assert server.end() == (0, "", "")


def test_requests_may_come_from_a_file_and_answers_go_to_one(file, tmp_path):
    requests, answers = tmp_path / "requests", tmp_path / "answers"
    requests.write_text(json.dumps(INITIALIZE) + "\n")
    with requests.open("rb") as source, answers.open("wb") as sink:
        command = [sys.executable, *PROGRAM, str(file)]
        assert subprocess.run(command, stdin=source, stdout=sink, timeout=60, check=False).returncode == 0
    assert json.loads(answers.read_text())["id"] == 1


def test_what_prints_and_reads_in_the_process_does_not_touch_the_protocol(file):
    program = textwrap.dedent("""
        import os, runpy
        from mcp_server.file import FileLibrary

        honest = FileLibrary.shelves

        async def noisy(self):
            print("printed by Python", flush=True)
            os.write(1, b"written by a library\\n")
            assert os.read(0, 100) == b""
            return await honest(self)

        FileLibrary.shelves = noisy
        runpy.run_module("mcp_server", run_name="__main__")
    """)
    with Server(file, ("-c", program)) as server:
        server.send(call(2, "list_indexes"))
        assert server.receive()["id"] == 1
        assert server.receive()["result"]["structuredContent"]["indexes"]
        assert server.end() == (0, "", "printed by Python\nwritten by a library\n")


def test_a_client_that_is_gone_is_no_fault(file):
    with Server(file) as server:
        server.receive()
        server.stdout.close()
        server.send(call(2, "list_indexes"), call(3, "list_indexes"))
        server.stdin.close()
        assert (server.wait(30), server.stderr.read()) == (0, "")


def test_a_client_that_dies_with_an_answer_unread_ends_the_server(file):
    ours, its = socket.socketpair()
    command = [sys.executable, *PROGRAM, str(file)]
    with ours, subprocess.Popen(command, stdin=its, stdout=its, stderr=subprocess.PIPE, text=True) as server:
        its.close()
        ours.sendall(json.dumps(INITIALIZE).encode() + b"\n")
        ours.recv(10)
        ours.close()
        assert server.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_descriptors_that_others_share_block_again_when_a_signal_ends_the_server(file, number):
    source, feed = os.pipe()
    with subprocess.Popen([sys.executable, *PROGRAM, str(file)], stdin=source, stdout=subprocess.PIPE) as server:
        os.write(feed, json.dumps(INITIALIZE).encode() + b"\n")
        assert server.stdout.readline()
        assert not os.get_blocking(source)
        server.send_signal(number)
        server.wait(30)
    assert os.get_blocking(source)
    os.close(source)
    os.close(feed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_server_that_waits_for_stdin_ends_when_it_is_told_to(file, number, code):
    with Server(file) as server:
        server.receive()
        server.send_signal(number)
        assert server.wait(30) == code
