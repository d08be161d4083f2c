"""What README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest
from fake_gemini import KEY, FakeGemini

from datasette_vec_gemini import connect, create_index, sync
from datasette_vec_gemini.cli import vec

README = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")


def test_the_python_example_prints_what_stands_below_it(tmp_path):
    program, output = re.search(r"```python\n(.+?)```\n```\n(.+?)```", README, re.DOTALL).groups()
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == output


@pytest.mark.asyncio
async def test_the_gemini_statements_give_what_stands_below_them_on_the_sql_page(tmp_path, monkeypatch, site):
    setup = re.search(r"```python\n.+?(conn.execute.+?conn.commit\(\))", README, re.DOTALL)[1]
    statements = re.findall(r"```sql\n([^`]+embed_gemini[^`]+)```\n```\n([^`]+)```", README)
    assert len(statements) == 2
    with FakeGemini() as fake:
        monkeypatch.setenv("GEMINI_API_KEY", KEY)
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", fake.url)
        conn = connect(tmp_path / "mydb.db", create=True)
        exec(setup, {"conn": conn})
        sync(conn, create_index(conn, "docs", table="docs", columns=["title", "body"], embedder="gemini"))
        conn.close()
        client = site(tmp_path / "mydb.db").client
        for statement, output in statements:
            address = "/mydb.json?" + urlencode({"sql": statement.strip().rstrip(";"), "_shape": "arrayfirst"})
            answer = await client.get(address, follow_redirects=True)
            assert answer.json() == output.split()


def test_every_command_is_described_and_every_described_command_exists():
    assert set(re.findall(r"^\| `datasette vec (\w+)", README, re.MULTILINE)) == set(vec.commands)


def test_every_option_that_is_named_exists():
    commands = [*vec.commands.values(), *vec.commands["mcp"].commands.values()]
    options = {name for command in commands for option in command.params for name in option.opts}
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README))
    assert shown - options == set()
