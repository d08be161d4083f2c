"""What README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

from datasette_vec_gemini.cli import vec

README = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")


def test_the_python_example_prints_what_stands_below_it(tmp_path):
    program, output = re.search(r"```python\n(.+?)```\n```\n(.+?)```", README, re.DOTALL).groups()
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == output


def test_every_command_is_described_and_every_described_command_exists():
    assert set(re.findall(r"^\| `datasette vec (\w+)", README, re.MULTILINE)) == set(vec.commands)


def test_every_option_that_is_named_exists():
    options = {name for command in vec.commands.values() for option in command.params for name in option.opts}
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README))
    assert shown - options == set()
