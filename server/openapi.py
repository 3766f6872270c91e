"""The OpenAPI document: what the framework derives, and the chunks of streams, which it does not see."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from server.schemas.answers import ChatCompletionChunk

REF_TEMPLATE = "#/components/schemas/{model}"
CHUNK_SCHEMA = {"$ref": REF_TEMPLATE.format(model=ChatCompletionChunk.__name__)}


def describe_streams(app: FastAPI) -> None:
    """Add the chunk's schema to the document; routes refer to it as ``CHUNK_SCHEMA``."""
    derive = app.openapi

    def derive_and_add() -> dict[str, Any]:
        document = derive()
        _, chunks = models_json_schema([(ChatCompletionChunk, "serialization")], ref_template=REF_TEMPLATE)
        for name, schema in chunks["$defs"].items():
            document["components"]["schemas"].setdefault(name, schema)
        return document

    app.openapi = derive_and_add  # type: ignore[method-assign]
