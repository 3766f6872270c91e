"""The OpenAPI document: what the framework derives, plus the chunks of streams, which it does not know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.schemas.answers import ChatCompletionChunk
from server.schemas.base import AnswerModel
from server.schemas.completions import Completion
from server.schemas.errors import ErrorAnswer
from server.schemas.response_answers import ResponseEvent
from server.sse import END_OF_STREAM

REF_TEMPLATE = "#/components/schemas/{model}"
STREAMED: tuple[type[AnswerModel], ...] = (ChatCompletionChunk, Completion, ResponseEvent)


def answers(whole: type[AnswerModel], streamed: type[AnswerModel]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of a route that answers whole or with a stream of events."""
    return {
        200: {
            "model": whole,
            "description": "The answer; with `stream`, server-sent events.",
            "content": {"text/event-stream": {"itemSchema": event_of(streamed)}},
        },
    }


def event_of(model: type[AnswerModel]) -> dict[str, Any]:
    """Return the schema of an event whose ``data`` holds text (OpenAPI 3.2)."""
    told = [
        {"type": "string", "contentMediaType": "application/json", "contentSchema": reference(one)}
        for one in (model, ErrorAnswer)
    ]
    data = {"anyOf": [*told, {"const": END_OF_STREAM}]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def reference(model: type[AnswerModel]) -> dict[str, str]:
    return {"$ref": REF_TEMPLATE.format(model=model.__name__)}


def describe_streams(app: FastAPI) -> None:
    """Add the schemas that occur only in streams to the document."""
    app.openapi_version = "3.2.0"  # the first that can describe events
    derive = app.openapi

    def derive_and_add() -> dict[str, Any]:
        document = derive()
        models = [(model, "serialization") for model in STREAMED]
        _, streamed = models_json_schema(models, ref_template=REF_TEMPLATE)  # type: ignore[arg-type]
        for name, schema in streamed["$defs"].items():
            document["components"]["schemas"].setdefault(name, schema)
        return document

    app.openapi = derive_and_add  # type: ignore[method-assign]
