"""What registries and clients read of us says the same as the package."""

import json
import tomllib
from pathlib import Path

import pytest
from callers import calling

ROOT = Path(__file__).parents[2]
SERVER = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
MANIFEST = json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_version_is_that_of_the_package():
    (package,) = SERVER["packages"]
    assert {SERVER["version"], package["version"], MANIFEST["version"]} == {PROJECT["version"]}
    assert package["runtimeArguments"][0]["value"] == f"{PROJECT['name']}[mcp]=={PROJECT['version']}"
    assert package["identifier"] == MANIFEST["name"] == PROJECT["name"]


def test_the_readme_proves_the_name_in_the_registry():
    assert f"<!-- mcp-name: {SERVER['name']} -->" in README


def test_both_say_the_same_of_the_server():
    assert SERVER["description"] == MANIFEST["description"]
    assert len(SERVER["description"]) <= 100
    assert SERVER["title"] == MANIFEST["display_name"]
    assert MANIFEST["license"] == PROJECT["license"]
    assert MANIFEST["compatibility"]["runtimes"]["python"] == PROJECT["requires-python"]
    assert (ROOT / MANIFEST["server"]["entry_point"]).is_file()


@pytest.mark.asyncio
async def test_the_manifest_and_the_readme_list_the_tools_there_are(memory):
    async with calling(memory) as call:
        tools = {tool.name: tool.description for tool in (await call.client.list_tools()).tools}
    assert [each["name"] for each in MANIFEST["tools"]] == list(tools)
    for each in MANIFEST["tools"]:
        assert tools[each["name"]].startswith(each["description"].removesuffix(".").partition(",")[0])
    listed = [
        line.split("`")[1].partition("(")[0] for line in README.splitlines() if line.startswith("| `") and "(" in line
    ]
    assert set(tools) <= set(listed)
