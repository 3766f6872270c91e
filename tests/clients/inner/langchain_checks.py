"""langchain-openai by LangChain's own standard tests."""

from __future__ import annotations

import base64
import os
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

SETTINGS = {
    "model": "specvlm-demo",
    "base_url": os.environ["CLIENTS_BASE_URL"],
    "api_key": "unused",
    "temperature": 0,
    "max_tokens": 250,
    "frequency_penalty": 1,  # or the demo model tells of a cat that is a cat that is a cat
    "stream_usage": True,
    "timeout": 120,
    "max_retries": 0,
}


class OneCall(ChatOpenAI):
    """The demo model knows no tools: asked for calls it goes on calling, and left free it calls none. So it
    must call where a test counts on it, and once where the test takes one call.
    """

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **options: Any) -> Any:
        one = options | {"parallel_tool_calls": False}
        return super().bind_tools(tools, tool_choice=tool_choice or "any", **one)


@pytest.fixture(autouse=True)
def picture_of_ours(monkeypatch: pytest.MonkeyPatch, picture: str) -> None:
    """The tests fetch a picture from the internet to send it: here they get one of ours."""
    png = httpx.Response(200, content=base64.b64decode(picture))
    monkeypatch.setattr(httpx, "get", lambda *_, **__: png)


class TestLangChain(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return OneCall

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return SETTINGS

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "another-name"

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = ChatOpenAI(**SETTINGS, max_completion_tokens=4)
        prompt = "The same beginning, again and again. " * 20
        model.invoke(prompt)
        if not stream:
            return model.invoke(prompt)
        answer = None
        for chunk in model.stream(prompt):
            answer = chunk if answer is None else answer + chunk
        return answer
