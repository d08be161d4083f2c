"""Tools and a prompt that ask the client for more before they answer, as the conformance suite wants to find them."""

from functools import partial
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer, Resolve
from mcp.server.mcpserver.resolve import Sample
from mcp.types import (
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
)

Round = dict[str, InputRequest]


def form(message: str, name: str, kind: str = "string") -> ElicitRequest:
    schema = {"type": "object", "properties": {name: {"type": kind}}, "required": [name]}
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def message(words: str, most: int) -> CreateMessageRequest:
    said = SamplingMessage(role="user", content=TextContent(type="text", text=words))
    return CreateMessageRequest(params=CreateMessageRequestParams(messages=[said], max_tokens=most))


NAME = form("What is your name?", "name")
CONFIRM = form("Please confirm", "ok", "boolean")
ROUNDS: dict[str, tuple[Round, ...]] = {
    "elicitation": ({"user_name": NAME},),
    "sampling": ({"capital_question": message("What is the capital of France?", 100)},),
    "list_roots": ({"client_roots": ListRootsRequest()},),
    "request_state": ({"confirm": CONFIRM},),
    "multiple_inputs": (
        {"user_name": NAME, "greeting": message("Generate a greeting", 50), "client_roots": ListRootsRequest()},
    ),
    "multi_round": (
        {"step1": form("Step 1: What is your name?", "name")},
        {"step2": form("Step 2: What is your favorite color?", "color")},
    ),
    "tampered_state": ({"confirm": CONFIRM},),
    "prompt": ({"user_context": form("What context should the prompt use?", "context")},),
}


def answered(name: str, ctx: Context[Any]) -> str | InputRequiredResult:
    """What was said once every round is answered; else what the next one asks. The state counts the rounds."""
    rounds, done = ROUNDS[name], int(ctx.request_state or 0)
    given = ctx.input_responses or {}
    if done < len(rounds) and rounds[done].keys() <= given.keys():
        done += 1
    if done < len(rounds):
        return InputRequiredResult(input_requests=rounds[done], request_state=str(done))
    said = " ".join(answer.model_dump_json() for answer in given.values())
    return f"state-ok: {said}"


def supported(ctx: Context[Any]) -> str | InputRequiredResult:
    """What the client says it can answer."""
    has = ctx.client_capabilities
    questions: Round = {}
    if has and has.sampling:
        questions["capital_question"] = message("What is the capital of France?", 100)
    if has and has.elicitation:
        questions["user_name"] = NAME
    return InputRequiredResult(input_requests=questions) if questions else "nothing can be asked"


def sample() -> Sample:
    return Sample(message("What is the capital of France?", 100).params.messages, max_tokens=100)


def add_asking(server: MCPServer[Any]) -> None:
    tool = partial(server.tool, description="A fixture.")

    def asks(name: str) -> None:
        @tool(name=f"test_input_required_result_{name}")
        def ask(ctx: Context[Any]) -> str | InputRequiredResult:
            return answered(name, ctx)

    for name in ROUNDS.keys() - {"prompt"}:
        asks(name)

    @tool()
    def test_input_required_result_capabilities(ctx: Context[Any]) -> str | InputRequiredResult:
        return supported(ctx)

    @tool()
    def test_missing_capability(said: Annotated[CreateMessageResult, Resolve(sample)]) -> str:
        return said.model_dump_json()

    @server.prompt(description="A fixture.")
    def test_input_required_result_prompt(ctx: Context[Any]) -> str | InputRequiredResult:
        return answered("prompt", ctx)
