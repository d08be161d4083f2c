"""`datasette vec mcp` and `python -m mcp_server`: start the server, or print how a client starts it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from datasette_vec_gemini import VecError

from .configs import CLIENTS, block, where

TOKEN_VARIABLE = "DATASETTE_VEC_MCP_TOKEN"  # noqa: S105 - the name of one
INTERRUPTED = 130
ADDRESS = "127.0.0.1:8765"
_LOCAL_MODELS = ("local", "hashing")


class _Group(click.Group):
    """Takes `serve` for said where no command is, and turns our errors into one line on stderr and their exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *self.get_help_option_names(ctx)}:
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VecError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group)
def mcp() -> None:
    """Serve the indexes of a file to agents over MCP: `datasette vec mcp DB`."""


_read_only = click.option("--read-only", is_flag=True, help="Without tools that write; so it is if the file is.")
_index = click.option("name", "--index", metavar="NAME", help="Serve this index alone.")
_chatgpt = click.option("--chatgpt", is_flag=True, help="Add search and fetch as ChatGPT's connectors want them.")


class _Serve(click.Command):
    """Takes what follows `--http` for DB where nothing else is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, [*args])
        except click.MissingParameter:
            if "--http" not in args:
                raise
        return super().parse_args(ctx, [f"--http={ADDRESS}" if each == "--http" else each for each in args])


@mcp.command(cls=_Serve)
@click.argument("db", type=click.Path(path_type=Path))
@click.option(
    "--http",
    "address",
    metavar="[HOST:PORT]",
    is_flag=False,
    flag_value=ADDRESS,
    help=f"Serve streamable HTTP at /mcp instead of stdio; {ADDRESS} by default.",
)
@_read_only
@_index
@click.option("--embedder", metavar="NAME", help="The model of a file that is made new; local by default.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help=f"A file with the token that HTTP clients must send; else {TOKEN_VARIABLE}.",
)
@click.option("hosts", "--allowed-host", multiple=True, metavar="NAME", help="A name it is reached by; repeatable.")
@_chatgpt
def serve(
    *,
    db: Path,
    address: str | None,
    read_only: bool,
    name: str | None,
    embedder: str | None,
    token_file: Path | None,
    hosts: Sequence[str],
    chatgpt: bool,
) -> None:
    """Serve DB over stdio, or over HTTP. A file that does not exist is made, as an empty memory for agents."""
    # First, and alone: it takes two seconds and more, and a model that is loaded beside it would slow it down.
    try:
        from . import http, stdio
        from .server import build_server
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "mcp":
            raise
        raise click.ClickException(
            "the MCP server needs one more package: pip install 'datasette-vec-gemini[mcp]'"
        ) from error
    from .file import MEMORY, FileLibrary, is_writable, make_memory

    if str(db) == ":memory:":
        raise click.UsageError("a database in memory cannot be served: name a file, a new one if need be")
    read_only = read_only or (db.exists() and not is_writable(db))
    if not read_only and (name or MEMORY).lower() == MEMORY:
        make_memory(db, embedder=embedder or "local")
    library = FileLibrary(db, read_only=read_only, only=name)
    try:
        found = library.start()
        if embedder and found and embedder not in {index.embedder for index in found}:
            raise click.UsageError(
                f"the index of this file has the model {found[0].embedder}: leave --embedder out, or change the model "
                f"with `datasette vec rebuild {db} {found[0].name} --embedder {embedder}`"
            )
        is_remote = any(re.split(r"[@:]", index.embedder)[0] not in _LOCAL_MODELS for index in found)
        server = build_server(
            library,
            writes=not read_only,
            names=[index.name for index in found],
            is_remote=is_remote,
            chatgpt=chatgpt,
        )
        if address is None:
            if sys.stdin.isatty():
                click.echo(
                    "Serving MCP over stdin and stdout; a client starts this, see `datasette vec mcp config`", err=True
                )
            # What is being done is lost as it is to any other death; the SDK would wait for the next line of stdin.
            signal.signal(signal.SIGINT, _end)
            signal.signal(signal.SIGTERM, _end)
            asyncio.run(stdio.serve(server))
            return
        host, port = _parse_address(address)
        app = http.application(server, host=host, token=_token(token_file), allowed_hosts=hosts)
        listening = http.listen(host, port)
        port = listening.getsockname()[1]
        click.echo(f"Serving MCP at http://{host}:{port}{http.PATH}  (Ctrl-C to stop)", err=True)
        http.serve(app, listening)
    finally:
        library.close()


def _end(number: int, _: object) -> None:
    from . import stdio

    stdio.give_back()
    if number == signal.SIGINT:
        os._exit(INTERRUPTED)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@mcp.command()
@click.argument("db", type=click.Path(path_type=Path), default=Path("mydb.db"))
@click.option("--client", required=True, type=click.Choice(CLIENTS), help="For which client.")
@click.option("--name", help="What the client calls the server; the name of the file by default.")
@_read_only
@click.option("only", "--index", metavar="NAME", help="Serve this index alone.")
def config(*, db: Path, client: str, name: str | None, read_only: bool, only: str | None) -> None:
    """Print what a client needs to start the server on DB, with absolute paths."""
    options = [*(["--read-only"] if read_only else []), *(["--index", only] if only else [])]
    click.echo(where(client), err=True)
    click.echo(block(client, db, name=name, options=options))


def _parse_address(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:(\[[0-9a-fA-F:]+\]|[^:\s]+):)?(\d{1,5})", text)
    if not match or int(match[2]) > 65_535:
        raise click.UsageError(f"--http is {text!r}; write HOST:PORT, such as {ADDRESS}")
    return match[1] or "127.0.0.1", int(match[2])


def _token(file: Path | None) -> str | None:
    try:
        text = file.read_text(encoding="utf-8") if file else os.environ.get(TOKEN_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError("the token file cannot be read as text") from error
    token = text.strip()
    if file and not token:
        raise click.UsageError("the token file is empty")
    return token or None
