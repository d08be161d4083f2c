"""What to write into the configuration of a client, so that it starts the server."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

CLIENTS = ("claude-code", "claude-desktop", "cursor", "vscode")
_WHERE = {
    "claude-code": "Run this:",
    "claude-desktop": "Into claude_desktop_config.json (Settings, Developer, Edit Config):",
    "cursor": "Into ~/.cursor/mcp.json, or .cursor/mcp.json of a project:",
    "vscode": "Into .vscode/mcp.json of a project:",
}


def where(client: str) -> str:
    """Where the block belongs."""
    return _WHERE[client]


def block(client: str, db: Path, *, name: str | None = None, options: Sequence[str] = ()) -> str:
    """The block, with the paths of this interpreter and of the file written out: a client has another directory."""
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", db.stem).strip("-") or "documents"
    # -P: clients start it in any directory, such as a project with an `mcp_server` of its own.
    command, args = sys.executable, ["-P", "-m", "mcp_server", str(db.absolute()), *options]
    if client == "claude-code":
        return shlex.join(["claude", "mcp", "add", name, "--", command, *args])
    server = {"command": command, "args": args}
    if client == "vscode":
        return json.dumps({"servers": {name: {"type": "stdio", **server}}}, indent=2)
    return json.dumps({"mcpServers": {name: server}}, indent=2)
