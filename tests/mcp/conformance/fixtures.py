"""Our server over HTTP with what the protocol's conformance suite wants to find: `python fixtures.py DB PORT [plain]`.

The names and the texts of the fixtures are the suite's own; everything else is what `datasette vec mcp DB --http` runs,
but with sessions, since some fixtures ask the client. With `plain` there are neither.
"""

import asyncio
import base64
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from asking import add_asking
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.types import (
    AudioContent,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    SamplingMessage,
    SetLevelRequestParams,
    SubscribeRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)
from pydantic import BaseModel, Field

from mcp_server import http
from mcp_server.file import FileLibrary, make_memory
from mcp_server.server import build_server

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = base64.b64encode(
    b"RIFF&\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0@\x1f\0\0\x80>\0\0\x02\0\x10\0data\x02\0\0\0\0\0"
).decode()


def text(words: str) -> TextContent:
    return TextContent(type="text", text=words)


def image() -> ImageContent:
    return ImageContent(type="image", data=PNG, mime_type="image/png")


def embedded(uri: str, kind: str, words: str) -> EmbeddedResource:
    return EmbeddedResource(type="resource", resource=TextResourceContents(uri=uri, mime_type=kind, text=words))


class Response(BaseModel):
    response: str


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: str = Field(default="active", json_schema_extra={"enum": ["active", "inactive", "pending"]})
    verified: bool = True


def titled(**titles: str) -> list[dict[str, str]]:
    return [{"const": const, "title": title} for const, title in titles.items()]


SIZES = {"small": "Small Size", "medium": "Medium Size", "large": "Large Size"}


class Enums(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})  # noqa: N815 - the suite's
    titledSingle: str = Field(json_schema_extra={"oneOf": titled(value1="First", value2="Second", value3="Third")})  # noqa: N815
    legacyEnum: str = Field(json_schema_extra={"enum": [*SIZES], "enumNames": [*SIZES.values()]})  # noqa: N815
    untitledMulti: list[str] = Field(  # noqa: N815
        json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2", "option3"]}}
    )
    titledMulti: list[str] = Field(  # noqa: N815
        json_schema_extra={"items": {"anyOf": titled(value1="First", value2="Second", value3="Third")}}
    )


def add_tools(server: MCPServer[Any]) -> None:
    tool = partial(server.tool, description="A fixture.")

    @tool()
    def test_simple_text() -> str:
        return "This is a simple text response for testing."

    @tool()
    def test_image_content() -> list[ImageContent]:
        return [image()]

    @tool()
    def test_audio_content() -> list[AudioContent]:
        return [AudioContent(type="audio", data=WAV, mime_type="audio/wav")]

    @tool()
    def test_embedded_resource() -> list[EmbeddedResource]:
        return [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]

    @tool()
    def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
        mixed = embedded("test://mixed-content-resource", "application/json", '{"test": "data", "value": 123}')
        return [text("Multiple content types test:"), image(), mixed]


def add_talk(server: MCPServer[Any]) -> None:
    """Tools that say something while they run, and one that fails."""
    tool = partial(server.tool, description="A fixture.")

    @tool()
    async def test_tool_with_logging(ctx: Context[Any]) -> str:
        for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(words)
            await asyncio.sleep(0.05)
        return "done"

    @tool()
    async def test_tool_with_progress(ctx: Context[Any]) -> str:
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100, f"Completed step {done} of 100")
            await asyncio.sleep(0.05)
        return "done"

    @tool()
    def test_error_handling() -> str:
        raise RuntimeError("This tool intentionally returns an error for testing")


def add_questions(server: MCPServer[Any]) -> None:
    """Tools that ask the client something, which needs a session."""
    tool = partial(server.tool, description="A fixture.")

    @tool()
    async def test_sampling(prompt: str, ctx: Context[Any]) -> str:
        asked = [SamplingMessage(role="user", content=text(prompt))]
        return f"LLM response: {(await ctx.session.create_message(asked, max_tokens=100)).content.text}"

    def asks(name: str, schema: type[BaseModel]) -> None:
        @tool(name=name)
        async def ask(ctx: Context[Any], message: str = "Please answer") -> str:
            answer = await ctx.elicit(message, schema)
            content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
            return f"User response: action={answer.action}, content={content}"

    asks("test_elicitation", Response)
    asks("test_elicitation_sep1034_defaults", Defaults)
    asks("test_elicitation_sep1330_enums", Enums)


def add_resources(server: MCPServer[Any]) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    def static_binary() -> bytes:
        return base64.b64decode(PNG)

    @server.resource("test://template/{id}/data", mime_type="application/json")
    def template(id: str) -> str:  # noqa: A002 - the suite's name
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    @server.resource("test://watched-resource", mime_type="text/plain")
    def watched() -> str:
        return "Watched resource content"


def add_prompts(server: MCPServer[Any]) -> None:
    prompt = partial(server.prompt, description="A fixture.")

    @prompt()
    def test_simple_prompt() -> list[UserMessage]:
        return [UserMessage(text("This is a simple prompt for testing."))]

    @prompt()
    def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
        return [UserMessage(text(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"))]

    @prompt()
    def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803 - the suite's name
        resource = embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [UserMessage(resource), UserMessage(text("Please process the embedded resource above."))]

    @prompt()
    def test_prompt_with_image() -> list[UserMessage]:
        return [UserMessage(image()), UserMessage(text("Please analyze the image above."))]


def add_requests(server: MCPServer[Any]) -> None:
    """What the older revisions let a client ask for, and we have no use for."""

    async def nothing(ctx: Any, params: Any) -> EmptyResult:
        return EmptyResult()

    kinds = {
        "logging/setLevel": SetLevelRequestParams,
        "resources/subscribe": SubscribeRequestParams,
        "resources/unsubscribe": UnsubscribeRequestParams,
    }
    for method, params in kinds.items():
        server._lowlevel_server.add_request_handler(method, params, nothing)  # noqa: SLF001 - there is no other way


def main() -> None:
    warnings.simplefilter("ignore")
    path, port = Path(sys.argv[1]), int(sys.argv[2])
    make_memory(path, embedder="hashing@64")
    library = FileLibrary(path)
    library.start()
    server = build_server(library, writes=True, names=["documents"])
    has_fixtures = sys.argv[3:] != ["plain"]
    if has_fixtures:
        for add in (add_tools, add_talk, add_questions, add_asking, add_resources, add_prompts, add_requests):
            add(server)
    try:
        http.serve(http.application(server, is_stateless=not has_fixtures), http.listen("127.0.0.1", port))
    finally:
        library.close()


if __name__ == "__main__":
    main()
