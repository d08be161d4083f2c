"""The arguments of the tools: what a schema says of each, and how a call is told what was wrong with its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, create_model, model_validator
from pydantic_core import PydanticCustomError

from .text import on_one_line

MOST_DOCUMENTS = 100
TEXT = WithJsonSchema({"type": "string"})
NUMBER = WithJsonSchema({"type": "number"})

IndexName = Annotated[
    str | None,
    TEXT,
    Field(description="Which index; needed only where list_indexes shows several", max_length=200),
]
Question = Annotated[
    str,
    Field(description="What to look for, in plain words; a whole question works best", min_length=1, max_length=2_000),
]
Limit = Annotated[int, Field(description="How many hits", ge=1, le=50)]
Offset = Annotated[int, Field(description="How many hits to pass over; next_offset of the last answer", ge=0, le=950)]
Filters = Annotated[
    dict[str, Any] | None,
    WithJsonSchema({"type": "object", "additionalProperties": True}),
    Field(
        description='Only documents where all of these hold: {"column": value} or {"column__op": value}, op one of '
        "not, gt, gte, lt, lte, in (a list), isnull (true or false). list_indexes shows the columns"
    ),
]
Mode = Annotated[
    Literal["hybrid", "semantic", "keyword"],
    Field(
        description="hybrid: meaning and words; semantic: meaning only; keyword: exact words, best for names or codes"
    ),
]
MinScore = Annotated[
    float | None, NUMBER, Field(description="Leave out hits with a lower score; scores differ with the mode")
]
Format = Annotated[
    Literal["concise", "detailed"],
    Field(description="concise: title and snippet; detailed: the whole chunk and the other columns, for few hits"),
]
Key = Annotated[
    str | int, TEXT, Field(description="The key of a document, as a hit, or an answer of add_documents, gives it")
]
Keys = Annotated[
    list[str | int],
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_DOCUMENTS}),
    Field(description="The keys of the documents, as hits give them", min_length=1, max_length=MOST_DOCUMENTS),
]
PartOffset = Annotated[int, Field(description="Where to begin, in characters; next_offset of the last answer", ge=0)]
PartSize = Annotated[int, Field(description="How many characters at most", ge=100, le=50_000)]
OnConflict = Annotated[
    Literal["replace", "skip", "error"],
    Field(description="Where a document has that id already: correct it, leave it, or refuse"),
]


class GivenDocument(BaseModel):
    """A document to add, or with the id of one that is there, to correct: what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    text: Annotated[str, Field(description="What is searched: up to 200,000 characters")]
    id: Annotated[
        str | int | None,
        TEXT,
        Field(description="Its key. Leave it out for a new document: one is made"),
    ] = None
    title: Annotated[str | None, TEXT, Field(description="What to call it in an answer")] = None
    category: Annotated[str | None, TEXT, Field(description="To filter by")] = None
    url: Annotated[str | None, TEXT, Field(description="Where it comes from")] = None
    metadata: Annotated[
        dict[str, Any] | None,
        WithJsonSchema({"type": "object", "additionalProperties": True}),
        Field(description="Anything else, kept as JSON"),
    ] = None
    fields: Annotated[
        dict[str, Any] | None,
        WithJsonSchema({"type": "object", "additionalProperties": True}),
        Field(description="Values for other columns of the table, by their names; list_indexes shows them"),
    ] = None


Documents = Annotated[
    list[GivenDocument],
    Field(description="1 to 100 documents, of 1,000,000 characters together", min_length=1, max_length=MOST_DOCUMENTS),
]


def strict(server: MCPServer[Any], names: list[str]) -> None:
    """Make tools refuse arguments that they do not know, and say in one line what is wrong with the others.

    The SDK drops what it does not know: a misspelt filter would find everything. It has no public way to change that.
    """
    for name in names:
        tool = server._tool_manager.get_tool(name)  # noqa: SLF001
        if tool:
            _tighten(tool)


def _tighten(tool: Tool) -> None:
    known = list(tool.fn_metadata.arg_model.model_fields)

    def explained(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            # Braces would be taken for places to fill in.
            raise PydanticCustomError("arguments", "{what}", {"what": _spelled(error, known)}) from None

    model = create_model(
        tool.fn_metadata.arg_model.__name__,
        __base__=tool.fn_metadata.arg_model,
        __validators__={"explained": cast("Any", model_validator(mode="wrap"))(explained)},
    )
    model.model_config |= {"extra": "forbid", "hide_input_in_errors": True}
    model.model_rebuild(force=True)
    tool.fn_metadata.arg_model = model
    tool.parameters["additionalProperties"] = False
    for properties in [tool.parameters, *tool.parameters.get("$defs", {}).values()]:
        for schema in properties.get("properties", {}).values():
            if schema.get("default", "") is None:  # which its type does not allow
                del schema["default"]


def _spelled(error: ValidationError, known: list[str]) -> str:
    """What is wrong with which arguments, without their values."""
    found = []
    for each in error.errors(include_url=False, include_input=False)[:5]:
        where = ".".join(on_one_line(str(part), 40) for part in each["loc"])
        unknown = each["type"] == "extra_forbidden"
        found.append(f"{where}: {'there is no such argument' if unknown else each['msg']}")
    return f"{'; '.join(found)}. The arguments are {', '.join(known)}: correct them and call again"
