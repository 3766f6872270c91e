"""instructor over the openai package, in the modes that force the form."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
import pydantic
import pytest

ASKED: dict[str, Any] = {
    "model": "specvlm-demo",
    "messages": [{"role": "user", "content": "Describe a square."}],
    "temperature": 0,
    "max_tokens": 80,
}
FORCED = [instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA]


class Shape(pydantic.BaseModel):
    kind: Literal["circle", "square", "triangle"]
    sides: int = pydantic.Field(ge=0, le=4)


class Drawing(pydantic.BaseModel):
    shapes: list[Shape] = pydantic.Field(min_length=1, max_length=2)


def client(base_url: str, mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=base_url, api_key="x", max_retries=0), mode=mode)


@pytest.mark.parametrize("mode", FORCED)
def test_an_object(base_url: str, mode: instructor.Mode) -> None:
    shape, completion = client(base_url, mode).chat.completions.create_with_completion(
        **ASKED, response_model=Shape, max_retries=0
    )
    assert isinstance(shape, Shape)
    assert completion.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", FORCED)
def test_nested_objects(base_url: str, mode: instructor.Mode) -> None:
    drawing = client(base_url, mode).chat.completions.create(**ASKED, response_model=Drawing, max_retries=0)
    assert 1 <= len(drawing.shapes) <= 2


@pytest.mark.parametrize("mode", FORCED)
def test_a_partial_object_is_streamed(base_url: str, mode: instructor.Mode) -> None:
    parts = list(client(base_url, mode).chat.completions.create_partial(**ASKED, response_model=Shape))
    assert len(parts) > 1
    assert Shape.model_validate(parts[-1].model_dump())


async def test_an_object_asynchronously(base_url: str) -> None:
    plain = openai.AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0)
    ours = instructor.from_openai(plain, mode=instructor.Mode.TOOLS)
    shape = await ours.chat.completions.create(**ASKED, response_model=Shape, max_retries=0)
    assert isinstance(shape, Shape)


def test_a_picture(base_url: str, picture: str) -> None:
    parts = ["What shape is this?", instructor.Image.from_base64(f"data:image/png;base64,{picture}")]
    asked = ASKED | {"messages": [{"role": "user", "content": parts}]}
    ours = client(base_url, instructor.Mode.TOOLS)
    assert isinstance(ours.chat.completions.create(**asked, response_model=Shape, max_retries=0), Shape)


def test_an_object_by_the_responses_api(base_url: str) -> None:
    asked = {key: ASKED[key] for key in ("model", "messages", "temperature")}
    ours = client(base_url, instructor.Mode.RESPONSES_TOOLS)
    shape = ours.chat.completions.create(**asked, response_model=Shape, max_output_tokens=80, max_retries=0)
    assert isinstance(shape, Shape)
