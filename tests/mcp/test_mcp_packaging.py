"""What registries and clients read of us says the same as the package."""

import json
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from callers import calling
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
SERVER = json.loads((ROOT / "server.json").read_text(encoding="utf-8"))
MANIFEST = json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_version_is_that_of_the_package():
    (package,) = SERVER["packages"]
    assert {SERVER["version"], package["version"], MANIFEST["version"]} == {PROJECT["version"]}
    assert package["identifier"] == MANIFEST["name"] == PROJECT["name"]


def test_what_clients_of_the_registry_run_starts_the_server(path):
    """`uvx --with mcp… datasette-vec-gemini@VERSION mcp DB`: an extra has no place in an identifier."""
    (package,) = SERVER["packages"]
    (needed,) = package["runtimeArguments"]
    assert (needed["name"], [needed["value"]]) == ("--with", PROJECT["optional-dependencies"]["mcp"])
    module, _, name = PROJECT["scripts"][package["identifier"]].partition(":")
    script = getattr(import_module(module), name)
    arguments = [each.get("value", str(path)) for each in package["packageArguments"]]
    result = CliRunner().invoke(script, [*arguments, "--read-only"])
    assert (result.exit_code, "there is no file 'test.db'" in result.stderr) == (1, True)


def test_what_git_ignores_is_not_in_the_bundle():
    ignored = (ROOT / ".mcpbignore").read_text(encoding="utf-8").splitlines()
    assert {line for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines() if line} <= set(ignored)
    for needed in ("pyproject.toml", "README.md", "LICENSE", "mcp_server", "datasette_vec_gemini"):
        assert not {needed, f"{needed}/", f"/{needed}", f"/{needed}/"} & set(ignored)


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
