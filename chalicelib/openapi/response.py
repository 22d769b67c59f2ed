"""The parts of an OpenAPI response object, and how each is written in the document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

Json = Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Header:
    """A header of a response. The document describes it once, under its name."""

    name: str
    description: str
    schema: Json
    always: bool = False

    def render(self) -> Json:
        required = {"required": True} if self.always else {}
        return {"description": self.description, **required, "schema": self.schema}


@dataclass(frozen=True, eq=False)
class Content:
    """A body. Without a model it is any JSON object."""

    model: type[BaseModel] | None = None
    example: Json | None = None
    examples: Json | None = None
    media_type: str = "application/json"

    def render(self) -> Json:
        schema = reference("schemas", self.model.__name__) if self.model else {"type": "object"}
        shown = {"example": self.example, "examples": self.examples}
        given = {name: value for name, value in shown.items() if value is not None}
        return {self.media_type: {"schema": schema, **given}}


@dataclass(frozen=True, eq=False)
class Link:
    """An operation that can follow, with parameters from this response."""

    name: str
    operation_id: str
    parameters: Mapping[str, str]

    def render(self) -> Json:
        return {"operationId": self.operation_id, "parameters": self.parameters}


@dataclass(frozen=True, eq=False)
class Response:
    status: int
    description: str
    headers: Sequence[Header] = ()
    content: Content | None = None
    links: Sequence[Link] = ()

    def render(self) -> Json:
        response: dict[str, object] = {
            "description": self.description,
            "headers": {header.name: reference("headers", header.name) for header in self.headers},
        }
        if self.content:
            response["content"] = self.content.render()
        if self.links:
            response["links"] = {link.name: link.render() for link in self.links}
        return response


def reference(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
