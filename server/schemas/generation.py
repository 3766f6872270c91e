"""Fields of every request that generates: sampling, streaming, speculation and scheduling."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from engine.config import VisualCompression
from server.schemas.base import NO_EFFECT, ClientModel
from server.schemas.messages import ImageDetail
from server.schemas.sampling import INT32_MAX, MaxTokens, SamplingFields
from server.schemas.speculation import SpeculativeFields
from server.schemas.vllm import VllmFields


class StreamOptions(ClientModel):
    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="With 'include_usage': report it in every chunk.")
    include_obfuscation: Annotated[bool | None, NO_EFFECT] = None

    @model_validator(mode="after")
    def _continuous_usage_is_usage(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            raise PydanticCustomError(
                "invalid_combination",
                "'{name}' needs 'include_usage' to be true.",
                {"name": "stream_options.continuous_usage_stats"},
            )
        return self


class CommonFields(SamplingFields):
    """Fields of every endpoint that generates."""

    model: str | None = Field(None, description="A served model; by default, the first one.")
    stream: bool | None = None
    speculative: SpeculativeFields | None = None
    cache_salt: str = Field("", max_length=256, description="Only equal salts share a prefix cache.")
    priority: int = Field(
        0, ge=-INT32_MAX, le=INT32_MAX, description="Lower runs first, where the server allows priorities."
    )
    request_id: str | None = Field(None, pattern=r"^[\x21-\x7e]{1,128}$")


class GenerationFields(CommonFields, VllmFields):
    """``prompt_field`` is the name of the field that holds the prompt, for error messages."""

    prompt_field: ClassVar[str]

    max_tokens: MaxTokens | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="Number of answers; default 1.")
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_combination", "'{name}' needs 'stream' to be true.", {"name": "stream_options"}
            )
        return self

    @property
    def token_limit(self) -> int | None:
        """Maximum tokens of an answer; ``None`` allows as many as fit."""
        return self.max_tokens

    @property
    def image_details(self) -> list[ImageDetail]:
        """The requested detail of each picture."""
        return []

    @property
    def lossy(self) -> VisualCompression | None:
        """Compression of pictures before the model sees them; ``None`` if the request does not specify it."""
        return None

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to return besides the chosen one; ``None`` returns no logprobs."""
        raise NotImplementedError

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Like ``num_logprobs``, for the tokens of the prompt."""
        return None

    @property
    def starts_text(self) -> bool:
        """Whether the answer is a text of its own rather than a continuation of the prompt's."""
        return True

    @property
    def form_field(self) -> str:
        """Name of the field that constrains the format of the answer."""
        return self.prompt_field

    @property
    def traces(self) -> bool:
        return self.speculative is not None and self.speculative.trace

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats
